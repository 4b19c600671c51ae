# SPDX-License-Identifier: Apache-2.0
"""Methods: the registry, and a method from outside the package with callbacks of its own."""

import pytest

from tests.support.tiny_schedule import tiny_schedule
from transformers_cvis.continual import Method, Schedule, register_method, train_continual
from transformers_cvis.continual.methods import METHODS
from transformers_cvis.training import TrainingCallback


class TaskRecorder(TrainingCallback):
    """Record the task events of a run, and the steps of each training."""

    def __init__(self):
        self.calls = []

    def before_task(self, task):
        counts = task.model.config.num_labels, task.recipe.max_steps, len(task.dataset) > 0
        self.calls.append(("before", task.number, task.class_names, task.is_base, task.is_last, *counts))

    def after_step(self, trainer, step):
        self.calls.append(step)

    def after_task(self, task):
        self.calls.append(("after", task.number, task.is_trained))


def test_a_method_from_outside_runs_by_its_name(shapes, tmp_path, monkeypatch):
    recorders = []

    def make_callbacks(schedule: Schedule) -> list[TaskRecorder]:
        recorders.append(TaskRecorder())
        assert schedule.method == "mine"
        return recorders

    monkeypatch.setitem(METHODS, "mine", None)  # removed again at the end
    monkeypatch.delitem(METHODS, "mine")
    register_method("mine", Method("task_clip_detector", has_prompts=False, make_callbacks=make_callbacks))
    schedule = tiny_schedule(shapes, "mine", classes={"tasks": [["circle"], ["ring"]]})
    further = TaskRecorder()
    train_continual(schedule, tmp_path / "run", overrides=["recipe.max_steps=2"], callbacks=[further])
    assert recorders[0].calls == [
        *[("before", 0, ["circle"], True, False, 1, 2, True), 0, 1, ("after", 0, True)],
        *[("before", 1, ["ring"], False, True, 2, 2, True), 0, 1, ("after", 1, True)],
    ]
    assert further.calls == recorders[0].calls
    assert len(recorders) == 1

    base = {"base_model": str(tmp_path / "run" / "task-0"), "classes": {"tasks": [["circle"]]}}
    train_continual(tiny_schedule(shapes, "mine", **base), tmp_path / "other")
    assert recorders[1].calls == [("after", 0, False)]


def test_method_names_are_unique(monkeypatch):
    monkeypatch.setitem(METHODS, "hvpl", METHODS["hvpl"])
    with pytest.raises(
        ValueError, match="The method 'hvpl' is already registered: .* `exist_ok=True`. Registered are hvpl, crisp"
    ):
        register_method("hvpl", Method("hvpl"))
    replacement = Method("hvpl")
    register_method("hvpl", replacement, exist_ok=True)
    assert METHODS["hvpl"] is replacement
