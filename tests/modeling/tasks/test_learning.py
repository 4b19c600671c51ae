# SPDX-License-Identifier: Apache-2.0
"""Tasks in memory: adding, switching and removing them, and the frozen parameters."""

import pytest
import torch

from tests.support.helpers import tiny_hvpl
from tests.support.task_models import TASKS, assert_same, model_after, train_task
from tests.support.video_data import video_batch


def trainable(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_removing_a_task_gives_the_model_before_it():
    model = tiny_hvpl()
    before, config, trained = model.state_dict(), model.config.to_dict(), trainable(model)
    model.add_task(["moon", "sun"], num_prompts=3)
    assert trainable(model) == {*model.task_parameters(1), *model.no_object_parameters()}
    model.remove_task()
    assert model.config.to_dict() == config
    assert trainable(model) == trained
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert model.criterion.num_labels == model.detector.criterion.num_labels == model.config.num_labels
    with pytest.raises(ValueError, match="The base cannot be removed"):
        model.remove_task()


def test_switching_between_tasks_gives_each_model_back():
    model = model_after(3)
    assert model.active_task_adapters == ["task-1", "task-2", "task-3"]
    base_weight = model.detector.model.transformer_module.queries_features.weight
    for number in (1, 0, 3, 2):
        model.set_task_adapters(number)
        assert_same(model, model_after(number))
        assert model.active_task_adapters == [f"task-{task}" for task in range(1, number + 1)]
        assert model.loaded_task_adapters == ["task-1", "task-2", "task-3"]
    model.set_task_adapters(["task-1"])
    assert_same(model, model_after(1))
    assert model.detector.model.transformer_module.queries_features.weight is base_weight  # nothing was reloaded


@torch.no_grad()
def test_a_switched_model_predicts_as_the_model_after_that_task():
    model = model_after(3)
    model.set_task_adapters(1)
    expected = model_after(1)(video_batch())
    assert torch.equal(model(video_batch()).class_queries_logits, expected.class_queries_logits)
    assert torch.equal(model(video_batch()).masks_queries_logits, expected.masks_queries_logits)


@pytest.mark.parametrize("names", [["task-2"], ["task-1", "task-3"], ["task-2", "task-1"], 4, -1, ["moon"]])
def test_tasks_with_a_gap_cannot_be_active(names):
    model = model_after(3)
    with pytest.raises(ValueError, match="the active ones must be the first of those in memory"):
        model.set_task_adapters(names)
    assert_same(model, model_after(3))


def test_deleting_tasks():
    model = model_after(3)
    with pytest.raises(ValueError, match="Other tasks build on task-2: delete task-3 first"):
        model.delete_task_adapter("task-2")
    with pytest.raises(ValueError, match=r"'task-4' is not in memory, which holds \['task-1', 'task-2', 'task-3'\]"):
        model.delete_task_adapter("task-4")
    model.delete_task_adapter("task-3")
    assert_same(model, model_after(2))
    model.set_task_adapters(1)
    with pytest.raises(ValueError, match="task-2 is in memory, but not active"):
        model.add_task(["sea"], num_prompts=3)
    model.delete_task_adapter("task-2")
    assert model.loaded_task_adapters == ["task-1"]
    train_task(model, TASKS[1], seed=1)
    assert_same(model, model_after(2))


def test_a_task_that_another_in_memory_builds_on_is_not_removed():
    model = tiny_hvpl()
    for name in ("moon", "sun"):
        model.add_task([name], 3)
    model.set_task_adapters("task-1")  # a name alone is a list of one
    assert model.active_task_adapters == ["task-1"]
    with pytest.raises(ValueError, match="task-2 in memory builds on the last active task: delete it first"):
        model.remove_task()
    assert model.loaded_task_adapters == ["task-1", "task-2"]
    model.delete_task_adapter("task-2")
    model.remove_task()
    assert model.loaded_task_adapters == []
