# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a base and its adapters after three tasks, in folders and on the Hub."""

import pytest

from tests.support.task_models import REPO, TASKS, model_after, train_task
from transformers_cvis import CvisVideoProcessor


@pytest.fixture
def folders(tmp_path):
    """Save a base and its adapters after tasks 1 to 3 in folders `task-0` ... `task-3`."""
    model = model_after(0)
    model.save_pretrained(tmp_path / "task-0")
    for seed, class_names in enumerate(TASKS):
        train_task(model, class_names, seed)
        model.save_task_adapter(tmp_path / f"task-{seed + 1}", CvisVideoProcessor())
    return tmp_path


@pytest.fixture
def pushed(loopback_hub):
    """Push the same as revisions of a repository, the base to `main`."""
    model = model_after(0)
    model.push_to_hub(REPO, video_processor=CvisVideoProcessor(size={"shortest_edge": 48, "longest_edge": 96}))
    for seed, class_names in enumerate(TASKS):
        train_task(model, class_names, seed)
        processor = CvisVideoProcessor(size={"shortest_edge": 64, "longest_edge": 96})
        model.push_task_adapter(REPO, processor)
    return loopback_hub
