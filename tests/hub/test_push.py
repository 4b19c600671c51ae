"""Push and pull with the real `huggingface_hub` client against the loopback Hub."""

import json
import os
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from transformers_cvis.hub.push import HubMixin, model_card, push_to_hub, read_training_summary

SUMMARY = {
    "metrics": {"AP": 0.51239, "AP50": 0.75, "AP_large": -1.0},
    "dataset": "64 held-out videos of moving shapes",
    "command": "transformers-cvis train genvis_moving_shapes",
    "seed": 7,
    "steps": 400,
    "seconds": 1800,
    "hardware": "2 cores",
}


class TinyConfig(PreTrainedConfig):
    model_type = "tiny_hub_test"
    width: int = 4


class TinyModel(HubMixin, PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.Linear(config.width, config.width)
        self.other = nn.Linear(config.width, config.width)
        self.post_init()


class TinyProcessor:
    def save_pretrained(self, folder):
        with open(f"{folder}/video_preprocessor_config.json", "w", encoding="utf-8") as file:
            json.dump({"size": 32}, file)


def tiny_model(seed: int = 0) -> TinyModel:
    torch.manual_seed(seed)
    return TinyModel(TinyConfig(id2label={0: "disk", 1: "star"}))


def assert_same_weights(first, second):
    weights, others = first.state_dict(), second.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


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


def test_the_models_own_method_pushes_the_processor_too(loopback_hub):
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


def test_files_of_an_earlier_push_do_not_stay_behind(loopback_hub):
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


def test_a_push_killed_before_its_commit_leaves_a_branch_without_a_model(loopback_hub, monkeypatch):
    """What the branch must not do is to pass off the model of `main` as its own."""
    push_to_hub(tiny_model(), TinyProcessor(), "tester/tiny")

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(HfApi, "create_commit", killed)
        patch.setattr(HfApi, "delete_branch", lambda *args, **kwargs: None)  # nor is there anyone to clean up
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


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_corrupt_weights_are_an_error_which_says_what_to_do(tmp_path, damage):
    tiny_model().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes({"truncated": content[:-40], "garbage": b"\xff" * 200, "empty": b""}[damage])
    with pytest.raises(OSError, match="weights of .* are corrupt or incomplete .*force_download"):
        TinyModel.from_pretrained(tmp_path)


def test_the_card_says_what_a_reader_needs(loopback_hub):
    summary = {"training_summary": SUMMARY, "license": "apache-2.0", "base_model": "tester/base"}
    push_to_hub(tiny_model(), TinyProcessor(), "tester/tiny", revision="task-1", **summary)
    card = ModelCard.load(hf_hub_download("tester/tiny", "README.md", revision="task-1"))

    assert card.data.license == "apache-2.0" and card.data.base_model == "tester/base"
    assert "video-instance-segmentation" in card.data.tags
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"AP": 0.5124, "AP50": 0.75}
    for text in (
        "import transformers_cvis\nfrom transformers import pipeline",
        'model="tester/tiny", revision="task-1"',
        "2: disk, star",
        "| AP | 0.5124 |",
        "On 64 held-out videos of moving shapes.",
        "Seed 7. 400 steps. 30 minutes on 2 cores.",
        "transformers-cvis train genvis_moving_shapes",
        "| Licence | apache-2.0 |",
        "Install `transformers_cvis` from its repository",
    ):
        assert text in card.text, text
    assert "pip install" not in card.text  # the package is on no index
    code = card.text.split("```python\n")[1:]
    for block in code:
        compile(block.split("```")[0], "card", "exec")

    folder = os.path.dirname(hf_hub_download("tester/tiny", "training_summary.json", revision="task-1"))
    assert read_training_summary(folder) == SUMMARY


class Report:
    def to_markdown(self):
        return "| after task | AP |\n"

    def save(self, folder):
        (Path(folder) / "report.json").write_text("{}")


def test_a_report_of_all_tasks_goes_with_a_whole_model(loopback_hub):
    push_to_hub(tiny_model(), TinyProcessor(), "tester/tiny", revision="task-1", report=Report())
    assert "report.json" in hub_repo(loopback_hub).files("task-1")
    card = ModelCard.load(hf_hub_download("tester/tiny", "README.md", revision="task-1"))
    assert "\n## After every task\n\n| after task | AP |\n\n## Measured\n" in card.text
    push_to_hub(tiny_model(), TinyProcessor(), "tester/tiny", revision="task-1")
    assert "report.json" not in hub_repo(loopback_hub).files("task-1")


def test_a_card_without_a_summary_claims_nothing():
    card = model_card(tiny_model(), "tester/tiny")
    assert card.data.license == "unknown" and card.data.eval_results is None
    assert "Nothing was measured." in card.text and "## Training" not in card.text


def test_the_repository_is_created_under_the_users_name(loopback_hub):
    push_to_hub(tiny_model(), TinyProcessor(), "tiny")
    assert HfApi().repo_exists("tester/tiny")
