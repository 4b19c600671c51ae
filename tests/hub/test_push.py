# SPDX-License-Identifier: Apache-2.0
"""Push and pull with the real `huggingface_hub` client against the loopback Hub."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from tests.support.tiny_hub_model import SUMMARY, TinyModel, TinyProcessor, assert_same_weights, tiny_model
from transformers_cvis.hub.push import push_to_hub

ROOT = Path(__file__).parents[2]


def hub_repo(hub):
    return hub.repos["model", "tester/tiny"]


def titles(hub, revision):
    return [commit["title"] for commit in hub_repo(hub).history(revision)]


def test_each_revision_gets_model_processor_and_card_in_one_commit(loopback_hub):
    models = {revision: tiny_model(seed) for seed, revision in enumerate((None, "task-1", "task-2"))}
    for revision, model in models.items():
        push_to_hub(model, TinyProcessor(), "tester/tiny", revision=revision, commit_message=f"push {revision}")

    assert titles(loopback_hub, "main") == ["push None", "initial commit"]
    assert titles(loopback_hub, "task-1") == ["push task-1", "initial commit"]
    assert titles(loopback_hub, "task-2") == ["push task-2", "initial commit"]
    for revision, model in models.items():
        files = set(hub_repo(loopback_hub).files(revision or "main"))
        assert files == {"README.md", "config.json", "model.safetensors", "video_preprocessor_config.json"}
        loaded = TinyModel.from_pretrained("tester/tiny", revision=revision or "main")
        assert_same_weights(loaded, model)
        assert loaded.config.id2label == {0: "disk", 1: "star"}


def test_the_models_own_method_pushes_the_processor(loopback_hub):
    commit = tiny_model().push_to_hub("tiny", video_processor=TinyProcessor(), revision="task-1")
    assert commit.oid == hub_repo(loopback_hub).branches["task-1"]
    assert "video_preprocessor_config.json" in hub_repo(loopback_hub).files("task-1")


def test_a_pull_request_leaves_the_branch_alone(loopback_hub):
    push_to_hub(tiny_model(), TinyProcessor(), "tester/tiny")
    before = hub_repo(loopback_hub).branches["main"]
    commit = push_to_hub(tiny_model(1), TinyProcessor(), "tester/tiny", create_pr=True)
    assert hub_repo(loopback_hub).branches["main"] == before
    assert_same_weights(TinyModel.from_pretrained("tester/tiny", revision=commit.pr_revision), tiny_model(1))


def test_pushing_the_same_again_makes_no_commit(loopback_hub):
    first = push_to_hub(tiny_model(), TinyProcessor(), "tester/tiny")
    second = push_to_hub(tiny_model(), TinyProcessor(), "tester/tiny")
    assert first.oid == second.oid


def test_files_of_an_earlier_push_are_removed(loopback_hub):
    push_to_hub(tiny_model(), None, "tester/tiny", max_shard_size=100, training_summary=SUMMARY)
    assert "model.safetensors.index.json" in hub_repo(loopback_hub).files("main")
    push_to_hub(tiny_model(), None, "tester/tiny")
    assert set(hub_repo(loopback_hub).files("main")) == {"README.md", "config.json", "model.safetensors"}


@pytest.mark.parametrize(("method", "path"), [("PUT", "/_lfs/"), ("POST", "/commit/")])
@pytest.mark.parametrize("revision", ["main", "task-1", "task-2"])
def test_an_interrupted_push_leaves_every_revision_as_it_was(loopback_hub, method, path, revision):
    push_to_hub(tiny_model(), TinyProcessor(), "tester/tiny")
    push_to_hub(tiny_model(1), TinyProcessor(), "tester/tiny", revision="task-1")
    before = dict(hub_repo(loopback_hub).branches)
    with loopback_hub.failing(method, path), pytest.raises((HfHubHTTPError, RuntimeError)):
        push_to_hub(tiny_model(2), TinyProcessor(), "tester/tiny", revision=revision)
    assert hub_repo(loopback_hub).branches == before

    push_to_hub(tiny_model(2), TinyProcessor(), "tester/tiny", revision=revision)
    assert_same_weights(TinyModel.from_pretrained("tester/tiny", revision=revision), tiny_model(2))


def test_killed_push_leaves_a_branch_without_a_model(loopback_hub, monkeypatch):
    """The branch must not present the model of `main` as its own."""
    push_to_hub(tiny_model(), TinyProcessor(), "tester/tiny")

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(HfApi, "create_commit", killed)
        patch.setattr(HfApi, "delete_branch", lambda *args, **kwargs: None)  # the killed process cannot clean up
        with pytest.raises(KeyboardInterrupt):
            push_to_hub(tiny_model(1), TinyProcessor(), "tester/tiny", revision="task-1")
    assert set(hub_repo(loopback_hub).branches) == {"main", "task-1"}
    with pytest.raises(OSError, match="tester/tiny does not appear to have a file named"):
        TinyModel.from_pretrained("tester/tiny", revision="task-1")

    push_to_hub(tiny_model(1), TinyProcessor(), "tester/tiny", revision="task-1")
    assert_same_weights(TinyModel.from_pretrained("tester/tiny", revision="task-1"), tiny_model(1))


def test_missing_repository_and_revision_are_named(loopback_hub):
    with pytest.raises(OSError, match="tester/absent"):
        TinyModel.from_pretrained("tester/absent")
    push_to_hub(tiny_model(), TinyProcessor(), "tester/tiny")
    with pytest.raises(OSError, match="task-9"):
        TinyModel.from_pretrained("tester/tiny", revision="task-9")


class Report:
    """Report with a plot of any name; with `lists_files=False` it does not declare its files."""

    def __init__(self, plot: str, lists_files: bool = True):
        self.plot, self.lists_files = plot, lists_files

    def to_markdown(self):
        return "| after task | AP |\n"

    def save(self, folder):
        (Path(folder) / self.plot).write_bytes(b"a plot")
        content = {"files": ["report.json", self.plot]} if self.lists_files else []
        (Path(folder) / "report.json").write_text(json.dumps(content))


def push_report(report) -> None:
    push_to_hub(tiny_model(), TinyProcessor(), "tester/tiny", revision="task-1", report=report)


def test_a_report_of_all_tasks_goes_with_a_whole_model(loopback_hub):
    push_report(Report("plot.png"))
    assert {"report.json", "plot.png"} <= set(hub_repo(loopback_hub).files("task-1"))
    card = ModelCard.load(hf_hub_download("tester/tiny", "README.md", revision="task-1"))
    assert "\n## After every task\n\n| after task | AP |\n\n## Measured\n" in card.text


def test_a_renamed_plot_of_a_report_does_not_stay(loopback_hub):
    push_report(Report("old_plot.png"))
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="mine.png", repo_id="tester/tiny", revision="task-1")
    push_report(Report("new_plot.png"))
    files = set(hub_repo(loopback_hub).files("task-1"))
    assert "new_plot.png" in files
    assert "old_plot.png" not in files
    assert "mine.png" in files  # not written by the package


def test_report_files_are_removed_without_importing_evaluation(loopback_hub):
    """The pushing process has not loaded `evaluation`: the revision itself names the files of its report."""
    push_report(Report("plot.png"))
    code = (
        "import sys\n"
        "from tests.support.tiny_hub_model import TinyProcessor, tiny_model\n"
        "from transformers_cvis.hub.push import push_to_hub\n"
        "push_to_hub(tiny_model(), TinyProcessor(), 'tester/tiny', revision='task-1')\n"
        "assert 'transformers_cvis.evaluation' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert set(hub_repo(loopback_hub).files("task-1")) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "video_preprocessor_config.json",
    }


def test_a_report_that_lists_no_files_owns_its_json_alone(loopback_hub):
    push_report(Report("plot.png", lists_files=False))
    push_report(None)
    files = set(hub_repo(loopback_hub).files("task-1"))
    assert "plot.png" in files
    assert "report.json" not in files


def test_the_repository_is_created_under_the_users_name(loopback_hub):
    push_to_hub(tiny_model(), TinyProcessor(), "tiny")
    assert HfApi().repo_exists("tester/tiny")
