# SPDX-License-Identifier: Apache-2.0
"""CRISP checkpoints: configurations from shapes, with and without class tokens."""

import pytest

from tests.support.detectron2_names import ResNet, crisp_names, mask2former_names, meta_state_dict
from tests.support.released_checkpoints import save_checkpoint
from transformers_cvis.conversion import convert_checkpoint
from transformers_cvis.conversion.released.crisp import infer_crisp_config


def test_tasks_prompts_and_class_tokens_are_read_from_the_shapes():
    released = meta_state_dict(crisp_names(ResNet()))
    config = infer_crisp_config(released, calibration_deltas=[0.1])
    assert (config.task_class_counts, config.task_prompt_counts) == ([3, 2, 1], [3, 3])
    assert config.calibration_deltas == [0.1]
    tokens = released["sem_seg_head.predictor.sem_prompter.learnable_prompts.0.weight"]
    assert config.text_hidden_size == tokens.shape[1]
    assert config.residual_prompts


def test_checkpoint_without_class_tokens_leaves_out_the_components_that_need_them():
    shapes = {name: shape for name, shape in crisp_names(ResNet()).items() if "sem_prompter" not in name}
    config = infer_crisp_config(meta_state_dict(shapes))
    assert not config.residual_prompts
    assert config.lambda_isc == 0


def test_copies_of_clip_are_ignored(tmp_path):
    report = convert_checkpoint(save_checkpoint(tmp_path, crisp_names(ResNet())), tmp_path / "out", "crisp")
    assert sum("CLIP" in reason for reason in report.ignored.values()) == 6


def test_checkpoint_without_class_heads_of_tasks_is_an_error():
    with pytest.raises(ValueError, match=r"no class heads of tasks \(`sem_seg_head\..*`\), so it is not CRISP\."):
        infer_crisp_config(meta_state_dict(mask2former_names(ResNet())))
