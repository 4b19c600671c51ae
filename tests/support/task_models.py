# SPDX-License-Identifier: Apache-2.0
"""Tiny HVPL models after some tasks, whose weights differ from task to task."""

import torch

from tests.support.helpers import tiny_hvpl
from transformers_cvis import HvplForVideoInstanceSegmentation

REPO = "tester/hvpl"
TASKS = (["moon"], ["sun", "sky"], ["sea"])


@torch.no_grad()
def train_task(model, class_names: list[str], seed: int) -> None:
    """Add a task whose weights differ from all others, as after training, and move the no-object heads."""
    model.add_task(class_names, num_prompts=3)
    generator = torch.Generator().manual_seed(seed)
    task = model.num_tasks - 1
    for parameter in [*model.task_parameters(task).values(), *model.no_object_parameters().values()]:
        parameter.add_(torch.randn(parameter.shape, generator=generator))
    directions = torch.linalg.qr(torch.randn(32, 2, generator=generator)).Q
    model.protect_directions(directions)


def model_after(num_tasks: int, **changes) -> HvplForVideoInstanceSegmentation:
    model = tiny_hvpl(calibration_deltas=[0.4, -0.5], **changes)
    model.protect_directions(torch.eye(32)[:, :3])
    for seed, class_names in enumerate(TASKS[:num_tasks]):
        train_task(model, class_names, seed)
    return model


def assert_same(model, expected) -> None:
    assert type(model) is type(expected)
    assert model.config.id2label == expected.config.id2label
    assert model.config.task_class_counts == expected.config.task_class_counts
    assert model.config.task_prompt_counts == expected.config.task_prompt_counts
    assert model.config.calibration_deltas == expected.config.calibration_deltas
    weights, others = model.state_dict(), expected.state_dict()
    assert weights.keys() == others.keys()
    for name in weights:
        assert torch.equal(weights[name], others[name]), name
    assert torch.equal(model.protected_directions(), expected.protected_directions())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, p in expected.named_parameters() if p.requires_grad
    }
