# SPDX-License-Identifier: Apache-2.0
"""The format of adapters, and refusal of those that do not fit, are corrupt, or skip a task."""

import json

import pytest
import torch

from tests.support.helpers import tiny_genvis, tiny_hvpl
from tests.support.task_models import TASKS, assert_same, model_after, train_task
from transformers_cvis import AutoModelForVideoInstanceSegmentation
from transformers_cvis.modeling.tasks.adapter_files import (
    BaseReference,
    TaskTensors,
    read_base_hashes,
    read_task_state,
    write_task_state,
)


def broken(folder, **changes):
    path = folder / "task_adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_failed_load_leaves_the_model_as_it_was(folders):
    weights = folders / "task-3" / "task_adapter_model.safetensors"
    other_base = tiny_hvpl(seed=1)
    for number, model in ((0, model_after(0)), (2, model_after(2))):
        with pytest.raises(ValueError, match="belongs to another base: .*task-0"):
            other_base.load_task_adapter(folders / "task-3")
        with pytest.raises(OSError, match="does not appear to have a file named task_adapter_config.json"):
            model.load_task_adapter(folders / "task-0")
        assert_same(model, model_after(number))
    assert other_base.num_tasks == 1

    whole = weights.read_bytes()
    for content in (whole[:-100], whole[:200], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        weights.write_bytes(content)
        model = model_after(1)
        with pytest.raises(OSError, match="task-3 are corrupt or incomplete"):
            model.load_task_adapter(folders / "task-3")
        assert_same(model, model_after(1))
        with pytest.raises(OSError, match="task-3 are corrupt or incomplete"):
            AutoModelForVideoInstanceSegmentation.from_pretrained(folders / "task-3")


def test_a_task_that_differs_from_the_one_in_memory(folders):
    model = model_after(0)
    train_task(model, TASKS[0], seed=7)
    train_task(model, TASKS[1], seed=8)
    model.set_task_adapters(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="task-1 of .*task-3 differs from the one in memory"):
        model.load_task_adapter(folders / "task-3")
    assert model.active_task_adapters == ["task-1"]
    assert model.loaded_task_adapters == ["task-1", "task-2"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_adapter_with_a_gap(folders):
    tasks = json.loads((folders / "task-3" / "task_adapter_config.json").read_text())["tasks"]
    broken(folders / "task-3", tasks=[tasks[0], tasks[2]])
    model = model_after(0)
    with pytest.raises(ValueError, match=r"holds the tasks \['task-1', 'task-3'\]: tasks build on each other"):
        model.load_task_adapter(folders / "task-3")
    assert_same(model, model_after(0))


def test_an_adapter_of_another_architecture(folders):
    model = model_after(0)
    broken(folders / "task-1", model_type="crisp")
    with pytest.raises(ValueError, match="task-1 holds tasks of a crisp model and cannot be added to a hvpl model"):
        model.load_task_adapter(folders / "task-1")
    broken(folders / "task-1", model_type="hvpl", format_version=99)
    with pytest.raises(OSError, match=r"newer transformers_cvis \(format 99\): update the package"):
        model.load_task_adapter(folders / "task-1")
    broken(folders / "task-2", tasks=[{"name": "task-1", "class_names": ["moon"], "num_prompts": 5}])
    with pytest.raises(ValueError, match=r"task-1 does not fit .* has the shape \(3, 32\), the model's \(5, 32\)"):
        model.load_task_adapter(folders / "task-2")
    (folders / "task-3" / "task_adapter_config.json").write_text("{}")
    with pytest.raises(OSError, match="is not a description of a task adapter"):
        model.load_task_adapter(folders / "task-3")
    assert_same(model, model_after(0))
    with pytest.raises(AttributeError):
        tiny_genvis().load_task_adapter(folders / "task-1")


# The format


def test_names_of_tensors_hold_kind_task_and_parameter():
    tensors = TaskTensors(
        weights={1: {"task_queries.0.features.weight": torch.ones(1)}},
        no_object={1: {"class_predictor.heads.0.bias": torch.zeros(1)}},
        directions={0: torch.eye(2)},
    )
    flat = tensors.to_flat()
    assert set(flat) == {
        "weights.1.task_queries.0.features.weight",
        "no_object.1.class_predictor.heads.0.bias",
        "directions.0",
    }
    assert TaskTensors.from_flat({**flat, "of_a_newer_version.1.name": torch.ones(1)}) == tensors


def test_a_base_is_a_folder_or_a_revision(tmp_path, monkeypatch):
    (tmp_path / "run" / "task-0").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    folder = BaseReference.at("run/task-0")
    assert folder == BaseReference(path=str(tmp_path / "run" / "task-0"))
    relative = folder.seen_from(tmp_path / "run" / "task-1")
    assert relative.path == str(relative) == "../task-0"
    assert relative.locate(tmp_path / "run" / "task-1") == (str(tmp_path / "run" / "task-0"), None)
    repository = BaseReference.at("tester/hvpl", "abc")
    assert str(repository) == "tester/hvpl at abc"
    assert repository.seen_from(tmp_path) is repository
    assert repository.locate(tmp_path) == ("tester/hvpl", "abc")
    assert str(BaseReference.at("tester/hvpl")) == "tester/hvpl"
    for reference in (relative, repository):
        assert BaseReference.from_dict(json.loads(json.dumps(reference.to_dict()))) == reference


def test_a_base_is_compared_in_a_dtype_that_both_know():
    base = BaseReference({"float32": "a", "bfloat16": "b"}, path="../task-0")
    base.check({"bfloat16": "b"})
    base.check({"float32": "a", "float16": "c"})
    with pytest.raises(ValueError, match="belongs to another base: ../task-0"):
        base.check({"bfloat16": "c"})
    with pytest.raises(
        ValueError, match="saved in float32, bfloat16, .* with those of a model in float16: load the base"
    ):
        base.check({"float16": "c"})


def test_a_corrupt_state_of_tasks_is_named(tmp_path):
    path = tmp_path / "task_learning_state.safetensors"
    write_task_state(TaskTensors(directions={0: torch.eye(2)}), {"float32": "a"}, tmp_path)
    assert read_base_hashes(path) == {"float32": "a"}
    assert torch.equal(read_task_state(path).directions[0], torch.eye(2))
    path.write_bytes(path.read_bytes()[:-4])
    for read in (read_base_hashes, read_task_state):
        with pytest.raises(OSError, match="task_learning_state.safetensors is corrupt or incomplete"):
            read(path)


def test_a_description_without_hashes_is_refused(folders):
    path = folders / "task-1" / "task_adapter_config.json"
    content = json.loads(path.read_text())
    del content["base"]["hashes"]
    path.write_text(json.dumps(content))
    with pytest.raises(OSError, match="is not a description of a task adapter .KeyError: 'hashes'"):
        model_after(0).load_task_adapter(folders / "task-1")
