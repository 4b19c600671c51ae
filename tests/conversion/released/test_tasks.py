# SPDX-License-Identifier: Apache-2.0
"""Names that HVPL and CRISP share: prompts, positions and class heads of tasks."""

import re

import pytest
import torch

from tests.support.detectron2_names import TINY, ResNet, crisp_names, hvpl_names, mask2former_names, meta_state_dict
from tests.support.released_checkpoints import TASK_CLASSES, load_model, save_checkpoint
from transformers_cvis.conversion import convert_checkpoint
from transformers_cvis.conversion.released.tasks import class_head_sizes, count_tasks, task_of


@pytest.mark.parametrize(("names_of", "num_tasks"), [(hvpl_names, 3), (crisp_names, 3), (mask2former_names, 0)])
def test_tasks_are_counted_with_the_base(names_of, num_tasks):
    assert count_tasks(names_of(ResNet())) == num_tasks


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("vita_module.class_embed.cls.0.weight", 0),  # no-object
        ("vita_module.class_embed.cls.1.weight", 0),
        ("sem_seg_head.predictor.class_embed.cls.3.layers.0.bias", 2),
        ("vita_module.prompt_feat.0.weight", 1),
        ("sem_seg_head.predictor.prompt_embed.1.5.weight", 2),
        ("sem_seg_head.predictor.sem_prompter.learnable_prompts.1.weight", 1),
        ("backbone.stem.conv1.weight", 0),
    ],
)
def test_tensor_belongs_to_the_task_that_added_it(name, task):
    assert task_of(name) == task


def test_class_heads_without_tasks_are_empty():
    assert class_head_sizes(meta_state_dict(mask2former_names(ResNet())), "sem_seg_head.predictor")[0] == []


@pytest.mark.parametrize(("system", "names_of"), [("hvpl", hvpl_names), ("crisp", crisp_names)])
def test_positions_that_all_layers_share_are_copied_to_each(system, names_of, tmp_path):
    """Prompts that are not deep have `prompt_embed.{task}.weight` alone."""
    positions = r"(.+\.prompt_embed\.\d+)\.\d+\.weight"
    shapes = {re.sub(positions, r"\1.weight", name): shape for name, shape in names_of(ResNet()).items()}
    path = save_checkpoint(tmp_path, shapes)
    report = convert_checkpoint(path, tmp_path / "out", system, class_names=TASK_CLASSES)
    assert len(report.mapped) + len(report.ignored) == len(shapes)
    assert not report.unknown
    assert not report.missing

    weights, released = load_model(tmp_path / "out").state_dict(), torch.load(path)["model"]
    parts = {"sem_seg_head.predictor": ("detector." if system == "hvpl" else "", TINY.decoder_layers)}
    if system == "hvpl":
        parts["vita_module"] = ("video_head.", TINY.video_layers)
    for source, (prefix, num_layers) in parts.items():
        for task in range(2):
            pattern = re.compile(rf"{prefix}task_queries\.{task}\.positions\.\d+\.weight")
            layers = [tensor for name, tensor in weights.items() if pattern.fullmatch(name)]
            assert len(layers) == num_layers
            assert all(torch.equal(layer, released[f"{source}.prompt_embed.{task}.weight"]) for layer in layers)


def test_shared_positions_are_cut_back_to_a_task(tmp_path):
    positions = r"(.+\.prompt_embed\.\d+)\.\d+\.weight"
    shapes = {re.sub(positions, r"\1.weight", name): shape for name, shape in crisp_names(ResNet()).items()}
    convert_checkpoint(save_checkpoint(tmp_path, shapes), tmp_path / "out", "crisp", task=1)
    assert load_model(tmp_path / "out").config.task_prompt_counts == [3]
