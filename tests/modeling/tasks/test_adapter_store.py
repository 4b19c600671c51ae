# SPDX-License-Identifier: Apache-2.0
"""The bookkeeping of tasks, without a model."""

import copy
import pickle

import torch

from transformers_cvis.modeling.tasks.adapter_files import TaskTensors
from transformers_cvis.modeling.tasks.adapter_store import AdapterStore


def heads(value: float) -> dict[str, torch.Tensor]:
    return {"class_predictor.heads.0.weight": torch.full((1, 2), value)}


def test_removed_task_restores_the_state_before_it():
    store = AdapterStore()
    store.begin_task(1, heads(0.0))
    store.begin_task(2, heads(1.0))
    store.protect(2, torch.eye(2))
    assert torch.equal(store.end_task(2)["class_predictor.heads.0.weight"], torch.ones(1, 2))
    assert store.directions == {}
    assert list(store.no_object) == [0]
    store.end_task(1)
    assert store.end_task(1) == {}  # unknown: the weights were not saved by this package


def test_protected_directions_are_a_copy_in_the_order_of_the_tasks():
    store, directions = AdapterStore(), torch.eye(4)
    assert store.protected() is None
    store.protect(2, directions[:, 1:3])
    store.protect(0, directions[:, :1])
    directions.zero_()
    assert torch.equal(store.protected(), torch.eye(4)[:, :3])


def test_store_restores_the_saved_state_of_another():
    store, other = AdapterStore(), AdapterStore()
    store.begin_task(1, heads(3.0))
    store.protect(0, torch.eye(3))
    other.restore(TaskTensors.from_flat(store.tensors().to_flat()))
    assert torch.equal(other.no_object[0]["class_predictor.heads.0.weight"], torch.full((1, 2), 3.0))
    assert torch.equal(other.protected(), torch.eye(3))
    for again in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        assert torch.equal(again.protected(), torch.eye(3))
        assert again.base is None
