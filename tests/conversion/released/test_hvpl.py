# SPDX-License-Identifier: Apache-2.0
"""HVPL checkpoints: configurations from shapes, and the released behaviour."""

import pytest

from tests.support.detectron2_names import ResNet, hvpl_names, meta_state_dict, vita_names
from tests.support.released_checkpoints import load_model, save_checkpoint
from transformers_cvis.conversion import convert_checkpoint
from transformers_cvis.conversion.released.hvpl import RELEASED_HVPL, infer_hvpl_config


def test_tasks_and_prompts_are_read_from_the_shapes():
    config = infer_hvpl_config(meta_state_dict(hvpl_names(ResNet())), calibration_deltas=[0.4, 0.5])
    assert (config.task_class_counts, config.task_prompt_counts) == ([3, 2, 1], [3, 3])
    assert config.deep_class_head
    assert config.calibration_deltas == [0.4, 0.5]
    assert config.num_labels == 6


def test_converted_model_behaves_as_released_unless_told_otherwise():
    released = meta_state_dict(hvpl_names(ResNet()))
    config = infer_hvpl_config(released)
    assert {name: getattr(config, name) for name in RELEASED_HVPL} == RELEASED_HVPL
    assert infer_hvpl_config(released, cross_tokens="per_task").cross_tokens == "per_task"


def test_report_names_the_calibration_that_no_tensor_shows(tmp_path):
    report = convert_checkpoint(save_checkpoint(tmp_path, hvpl_names(ResNet())), tmp_path / "out", "hvpl")
    assert "The tensors do not show calibration_deltas=[0.0]; change it with --set (`settings`)." in report.notes
    assert load_model(tmp_path / "out").config.cross_tokens == "released"


def test_checkpoint_without_class_heads_of_tasks_is_an_error():
    with pytest.raises(ValueError, match=r"no class heads of tasks \(`vita_module\..*`\), so it is not HVPL\."):
        infer_hvpl_config(meta_state_dict(vita_names(ResNet())))
