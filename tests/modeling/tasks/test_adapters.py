# SPDX-License-Identifier: Apache-2.0
"""Task adapters: saved, loaded, pushed and pulled as revisions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file
from transformers import pipeline

from tests.support.helpers import tiny_genvis, tiny_hvpl
from tests.support.task_models import REPO, TASKS, assert_same, model_after, train_task
from transformers_cvis import (
    AutoModelForVideoInstanceSegmentation,
    HvplForVideoInstanceSegmentation,
)
from transformers_cvis.hub import push as hub

ADAPTER_CONFIG = "task_adapter_config.json"
ADAPTER_FILES = {ADAPTER_CONFIG, "task_adapter_model.safetensors", "config.json", "README.md"}

# Folders


def test_folders_of_adapters(folders):
    assert set(os.listdir(folders / "task-2")) == {*ADAPTER_FILES, "video_preprocessor_config.json"}
    for number in (1, 2, 3):
        loaded = HvplForVideoInstanceSegmentation.from_pretrained(folders / f"task-{number}")
        assert_same(loaded, model_after(number))
        assert not loaded.training
        assert_same(AutoModelForVideoInstanceSegmentation.from_pretrained(folders / f"task-{number}"), loaded)
    description = json.loads((folders / "task-2" / "task_adapter_config.json").read_text())
    assert description["base"]["path"] == "../task-0"
    assert f"# {folders.name} after task-2\n" in (folders / "task-2" / "README.md").read_text()
    assert [task["class_names"] for task in description["tasks"]] == [["moon"], ["sun", "sky"]]
    assert "parameters that its tasks added to the base, ../task-0. " in (folders / "task-2" / "README.md").read_text()


def test_fields_of_the_configuration_can_be_changed_while_loading(folders):
    model = AutoModelForVideoInstanceSegmentation.from_pretrained(folders / "task-2", calibration_deltas=[0.9])
    assert model.config.calibration_deltas == [0.9]
    assert model.config.task_class_counts == [3, 1, 2]
    model = HvplForVideoInstanceSegmentation.from_pretrained(folders / "task-2", detector_chunk_size=3)
    assert model.config.detector_chunk_size == 3


def test_a_base_that_was_moved(folders, tmp_path):
    os.rename(folders / "task-0", folders / "elsewhere")
    with pytest.raises(OSError, match="The base of the task adapter .*task-2.* cannot be loaded.*pass its folder"):
        HvplForVideoInstanceSegmentation.from_pretrained(folders / "task-2")
    model = HvplForVideoInstanceSegmentation.from_pretrained(folders / "task-2", base=str(folders / "elsewhere"))
    assert_same(model, model_after(2))
    with pytest.raises(ValueError, match="is a whole model, not a task adapter: leave out `base`"):
        HvplForVideoInstanceSegmentation.from_pretrained(folders / "elsewhere", base=str(folders / "task-2"))


def test_loading_onto_a_base_in_memory(folders):
    model = model_after(0)
    model.load_task_adapter(folders / "task-1")
    assert_same(model, model_after(1))
    model.load_task_adapter(folders / "task-3")  # adds the two missing tasks
    assert_same(model, model_after(3))
    model.load_task_adapter(folders / "task-2")  # adds nothing and deactivates tasks
    assert_same(model, model_after(2))
    assert model.loaded_task_adapters == ["task-1", "task-2", "task-3"]


def test_whole_model_keeps_the_state_for_switching(tmp_path):
    model_after(3).save_pretrained(tmp_path)
    model = HvplForVideoInstanceSegmentation.from_pretrained(tmp_path)
    assert_same(model, model_after(3))
    model.set_task_adapters(1)
    assert_same(model, model_after(1))


def test_a_whole_model_of_other_origin_cannot_go_back(tmp_path):
    model_after(2).save_pretrained(tmp_path)
    (tmp_path / "task_learning_state.safetensors").unlink()
    model = HvplForVideoInstanceSegmentation.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="The no-object heads after task-1 are unknown"):
        model.set_task_adapters(1)
    with pytest.raises(ValueError, match="task-1 are unknown.* cannot be saved as adapters. Save or push"):
        model.save_task_adapter(tmp_path / "adapter", base=tmp_path)
    assert model.active_task_adapters == ["task-1", "task-2"]
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_base_in_half_precision_is_known(folders, dtype):
    model = HvplForVideoInstanceSegmentation.from_pretrained(folders / "task-0", dtype=dtype)
    model.load_task_adapter(folders / "task-2")
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    loaded = HvplForVideoInstanceSegmentation.from_pretrained(folders / "task-2", dtype=dtype)
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), model.parameters(), strict=True))


def test_saving_needs_a_task_and_a_base(tmp_path):
    model = tiny_hvpl()
    with pytest.raises(ValueError, match="no task after its base, so no adapter: save it with `save_pretrained`"):
        model.save_task_adapter(tmp_path)
    model.add_task(["moon"], num_prompts=3)
    with pytest.raises(ValueError, match="base is in memory only: save it"):
        model.save_task_adapter(tmp_path)
    assert os.listdir(tmp_path) == []


# The Hub


def test_revisions_hold_what_tasks_added_in_one_commit_each(pushed):
    repo = pushed.repos["model", REPO]
    assert len(repo.history("main")) == 2
    for number in (1, 2, 3):
        revision = f"task-{number}"
        assert [commit["title"] for commit in repo.history(revision)][:-1] == [
            f"Upload HvplForVideoInstanceSegmentation after {revision}"
        ]
        assert set(repo.files(revision)) == {*ADAPTER_FILES, "video_preprocessor_config.json"}
    assert "model.safetensors" in repo.files("main")


def test_each_revision_loads_by_branch_tag_and_commit(pushed):
    repo = pushed.repos["model", REPO]
    HfApi().create_tag(REPO, tag="v2", revision="task-2")
    for number, revision in ((1, "task-1"), (2, "v2"), (2, repo.branches["task-2"]), (3, "task-3")):
        assert_same(HvplForVideoInstanceSegmentation.from_pretrained(REPO, revision=revision), model_after(number))
        auto = AutoModelForVideoInstanceSegmentation.from_pretrained(REPO, revision=revision)
        assert_same(auto, model_after(number))
    assert_same(AutoModelForVideoInstanceSegmentation.from_pretrained(REPO), model_after(0))


def test_the_pipeline_takes_a_revision(pushed):
    segmenter = pipeline("video-instance-segmentation", model=REPO, revision="task-2")
    assert_same(segmenter.model, model_after(2))
    assert segmenter.video_processor.size["shortest_edge"] == 64
    video = np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)
    labels = {track.label for track in segmenter(video, threshold=0.0)["tracks"]}
    assert labels <= {"disk", "star", "ring", "moon", "sun", "sky"}


def test_a_base_in_memory_fetches_the_adapter_alone(pushed, tmp_path):
    model = AutoModelForVideoInstanceSegmentation.from_pretrained(REPO)
    pushed.log.clear()
    model.load_task_adapter(REPO, revision="task-3", cache_dir=str(tmp_path))
    assert_same(model, model_after(3))
    fetched = {
        path.split("?")[0].split("/")[-1] for method, path in pushed.log if method == "GET" and "/resolve/" in path
    }
    assert fetched == {"task_adapter_config.json", "task_adapter_model.safetensors"}


def test_a_base_moves_on_and_adapters_keep_theirs(pushed):
    tiny_hvpl(seed=5).push_to_hub(REPO)
    assert_same(AutoModelForVideoInstanceSegmentation.from_pretrained(REPO, revision="task-2"), model_after(2))
    new = AutoModelForVideoInstanceSegmentation.from_pretrained(REPO)
    with pytest.raises(ValueError, match=f"belongs to another base: {REPO} at "):
        new.load_task_adapter(REPO, revision="task-2")


def test_tasks_find_a_base_copied_on_the_hub(pushed):
    model_after(0).push_to_hub("tester/copy")
    model = HvplForVideoInstanceSegmentation.from_pretrained(REPO, revision="task-1", base="tester/copy")
    train_task(model, TASKS[1], seed=1)
    model.push_task_adapter(REPO)
    description = json.loads(Path(HfApi().hf_hub_download(REPO, ADAPTER_CONFIG, revision="task-2")).read_text())
    commit = pushed.repos["model", "tester/copy"].branches["main"]
    assert (description["base"]["repo"], description["base"]["revision"]) == ("tester/copy", commit)
    assert_same(AutoModelForVideoInstanceSegmentation.from_pretrained(REPO, revision="task-2"), model_after(2))


def test_an_adapter_in_a_repository_of_its_own(pushed):
    model = AutoModelForVideoInstanceSegmentation.from_pretrained(REPO)
    train_task(model, TASKS[0], seed=0)
    model.push_task_adapter("tester/moons")
    loaded = AutoModelForVideoInstanceSegmentation.from_pretrained("tester/moons", revision="task-1")
    assert_same(loaded, model_after(1))


def test_missing_revisions_and_repositories_are_named(pushed):
    model = model_after(0)
    with pytest.raises(OSError, match="task-9"):
        model.load_task_adapter(REPO, revision="task-9")
    with pytest.raises(OSError, match="tester/absent"):
        model.load_task_adapter("tester/absent", revision="task-1")
    with pytest.raises(OSError, match="task-9"):
        AutoModelForVideoInstanceSegmentation.from_pretrained(REPO, revision="task-9")
    with pytest.raises(TypeError, match="unknown argument 'revison'"):
        model.load_task_adapter(REPO, revison="task-1")
    assert_same(model, model_after(0))


DAMAGE = {
    "truncated": lambda content: content[:-100],
    "empty": lambda content: b"",
    "changed": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "garbage": lambda content: b"\xff" * len(content),
}


def damage(pushed, revision: str, file: str, kind: str) -> None:
    """The Hub returns other content for a file than was pushed."""
    _, oid, _ = pushed.repos["model", REPO].files(revision)[file]
    pushed.lfs[oid] = DAMAGE[kind](pushed.lfs[oid])


@pytest.mark.parametrize("kind", list(DAMAGE))
def test_an_adapter_that_arrives_corrupt(pushed, tmp_path, kind):
    damage(pushed, "task-3", "task_adapter_model.safetensors", kind)
    model = model_after(1)
    message = "the SHA-256 of .*task_adapter_model.safetensors is not the one|Consistency check failed|0 bytes"
    with pytest.raises(OSError, match=message):
        model.load_task_adapter(REPO, revision="task-3", cache_dir=str(tmp_path / "a"))
    assert_same(model, model_after(1))
    with pytest.raises(OSError, match=message):
        AutoModelForVideoInstanceSegmentation.from_pretrained(REPO, revision="task-3", cache_dir=str(tmp_path / "b"))


@pytest.mark.parametrize("kind", list(DAMAGE))
def test_corrupt_base_of_a_sound_adapter_is_refused(pushed, tmp_path, kind):
    damage(pushed, "main", "model.safetensors", kind)
    error, message = {
        "truncated": (OSError, f"The base of the task adapter {REPO}, {REPO}, cannot be loaded: "),
        "empty": (OSError, f"The base of the task adapter {REPO}, {REPO}, cannot be loaded: "),
        "changed": (ValueError, f"belongs to another base: {REPO} at "),
        "garbage": (OSError, f"The base of the task adapter {REPO}, .* are corrupt or incomplete"),
    }[kind]
    for model_class in (AutoModelForVideoInstanceSegmentation, HvplForVideoInstanceSegmentation):
        with pytest.raises(error, match=message):
            model_class.from_pretrained(REPO, revision="task-2", cache_dir=str(tmp_path))


def test_a_revision_with_a_gap(pushed, tmp_path):
    name = "task_adapter_config.json"
    content = json.loads(Path(HfApi().hf_hub_download(REPO, name, revision="task-3")).read_text())
    del content["tasks"][1]
    changed = json.dumps(content).encode()
    HfApi().upload_file(path_or_fileobj=changed, path_in_repo=name, repo_id=REPO, revision="task-3")
    model = model_after(1)
    with pytest.raises(ValueError, match=rf"{REPO} holds the tasks \['task-1', 'task-3'\]: tasks build on each other"):
        model.load_task_adapter(REPO, revision="task-3")
    assert_same(model, model_after(1))
    with pytest.raises(ValueError, match=r"holds the tasks \['task-1', 'task-3'\]"):
        AutoModelForVideoInstanceSegmentation.from_pretrained(REPO, revision="task-3")


def test_whole_models_and_adapters_replace_each_other(pushed):
    repo = pushed.repos["model", REPO]
    tiny_genvis().push_to_hub(REPO, revision="task-1")
    assert "model.safetensors" in repo.files("task-1")
    assert not [name for name in repo.files("task-1") if name.startswith("task_")]
    model = AutoModelForVideoInstanceSegmentation.from_pretrained(REPO, revision="task-2")
    model.push_task_adapter(REPO, revision="task-1")
    assert set(repo.files("task-1")) == {*ADAPTER_FILES, "video_preprocessor_config.json"}


def test_killed_push_does_not_present_the_base_as_the_task(pushed, monkeypatch):
    model = model_after(0)
    train_task(model, TASKS[0], seed=9)
    with monkeypatch.context() as patch:
        for name in ("create_commit", "delete_branch"):
            patch.setattr(hub.HfApi, name, lambda *args, **kwargs: sys.exit("killed"))
        with pytest.raises(SystemExit):
            model.push_task_adapter(REPO, revision="task-4")
    assert "task-4" in pushed.repos["model", REPO].branches
    with pytest.raises(OSError, match=f"{REPO} does not appear to have a file named"):
        HvplForVideoInstanceSegmentation.from_pretrained(REPO, revision="task-4")
    with pytest.raises(ValueError, match=f"Unrecognized model in {REPO}. Should have a `model_type` key"):
        AutoModelForVideoInstanceSegmentation.from_pretrained(REPO, revision="task-4")
    model.push_task_adapter(REPO, revision="task-4")
    assert_same(AutoModelForVideoInstanceSegmentation.from_pretrained(REPO, revision="task-4"), model)


def test_a_push_needs_its_base_on_the_hub(loopback_hub, tmp_path):
    model = model_after(0)
    model.save_pretrained(tmp_path / "base")
    train_task(model, TASKS[0], seed=0)
    with pytest.raises(
        ValueError, match="does not hold the base of a model that learns task by task: push the base there first"
    ):
        model.push_task_adapter(REPO)
    tiny_hvpl(seed=1).push_to_hub(REPO)
    with pytest.raises(ValueError, match="belongs to another base"):
        model.push_task_adapter(REPO)
    assert set(loopback_hub.repos["model", REPO].branches) == {"main"}
    HvplForVideoInstanceSegmentation.from_pretrained(tmp_path / "base").push_to_hub(REPO)
    model.push_task_adapter(REPO)
    assert_same(AutoModelForVideoInstanceSegmentation.from_pretrained(REPO, revision="task-1"), model_after(1))


@pytest.mark.parametrize(("method", "path"), [("PUT", "/_lfs/"), ("POST", "/commit/")])
def test_an_interrupted_push_leaves_every_revision_as_it_was(pushed, method, path):
    before = dict(pushed.repos["model", REPO].branches)
    model = model_after(0)
    for seed, revision in ((5, "task-1"), (6, "task-7")):
        model.set_task_adapters(0)
        for name in reversed(model.loaded_task_adapters):
            model.delete_task_adapter(name)
        train_task(model, TASKS[0], seed)
        with pushed.failing(method, path), pytest.raises((HfHubHTTPError, RuntimeError)):
            model.push_task_adapter(REPO, revision=revision)
        assert pushed.repos["model", REPO].branches == before


@pytest.mark.parametrize("revision", ["task-1", "task-4"])
def test_second_of_two_writers_gets_an_error(pushed, monkeypatch, revision):
    """Another process pushes between reading the repository and committing to it."""
    model = model_after(0)
    train_task(model, TASKS[0], seed=9)
    real = hub.HfApi.preupload_lfs_files

    def other_comes_first(api, *args, **kwargs):
        monkeypatch.setattr(hub.HfApi, "preupload_lfs_files", real)
        other = model_after(0)
        train_task(other, TASKS[0], seed=8)
        other.push_task_adapter(REPO, revision=revision)
        return real(api, *args, **kwargs)

    monkeypatch.setattr(hub.HfApi, "preupload_lfs_files", other_comes_first)
    with pytest.raises(RuntimeError, match=f"{REPO}, revision {revision}: somebody else wrote to it during this push"):
        model.push_task_adapter(REPO, revision=revision)
    expected = model_after(0)
    train_task(expected, TASKS[0], seed=8)
    assert_same(AutoModelForVideoInstanceSegmentation.from_pretrained(REPO, revision=revision), expected)
    model.push_task_adapter(REPO, revision=revision)  # the next try reads the repository again
    assert_same(AutoModelForVideoInstanceSegmentation.from_pretrained(REPO, revision=revision), model)


def test_a_revision_loads_from_the_cache_when_offline(pushed):
    for revision in ("main", "task-2"):
        AutoModelForVideoInstanceSegmentation.from_pretrained(REPO, revision=revision)
    code = (
        "import transformers_cvis\n"
        "load = transformers_cvis.AutoModelForVideoInstanceSegmentation.from_pretrained\n"
        f"print(load({REPO!r}, revision='task-2').active_task_adapters)\n"
        f"model = load({REPO!r})\n"
        f"model.load_task_adapter({REPO!r}, revision='task-2')\n"
        "print(model.config.task_class_counts)\n"
    )
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    run = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["['task-1', 'task-2']", "[3, 1, 2]"]


def test_the_card_names_tasks_base_and_report(pushed):
    class Report:
        def to_markdown(self):
            return "| after task | AP |"

        def save(self, folder):
            (Path(folder) / "report.json").write_text("{}")

    model = model_after(0)
    train_task(model, TASKS[0], seed=0)
    model.push_task_adapter(REPO, report=Report(), license="apache-2.0")
    repo = pushed.repos["model", REPO]
    assert "report.json" in repo.files("task-1")
    card = HfApi().hf_hub_download(REPO, "README.md", revision="task-1")
    text = Path(card).read_text(encoding="utf-8")
    for part in (
        "| base | disk, star, ring |",
        "| task-1 | moon |",
        f"{REPO} at {repo.branches['main']}",
        "| after task | AP |",
        'revision="task-1"',
        f"base_model: {REPO}",
        "\n# hvpl after task-1\n",
    ):
        assert part in text, part


def test_an_adapter_is_small(folders):
    sizes = {
        name: os.path.getsize(folders / name)
        for name in ("task-0/model.safetensors", "task-1/task_adapter_model.safetensors")
    }
    tensors = load_file(folders / "task-1" / "task_adapter_model.safetensors")
    assert all(name.startswith(("weights.1.", "no_object.1.", "directions.")) for name in tensors)
    assert sizes["task-1/task_adapter_model.safetensors"] < sizes["task-0/model.safetensors"]
