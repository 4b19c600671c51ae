"""Models on the Hub: weights, video processor and a generated card, pushed in one commit to one revision."""

import fnmatch
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
)
from huggingface_hub.errors import HfHubHTTPError

from ..files import temporary_folder, write_json

TRAINING_SUMMARY_FILE = "training_summary.json"
TASK = "video-instance-segmentation"

# A push owns these files of a revision: those which it does not write again are removed. A revision may hold a whole
# model at one time and a task adapter at another.
OWNED_FILES = (
    *("model*.safetensors", "model.safetensors.index.json", TRAINING_SUMMARY_FILE),
    *("task_adapter_config.json", "task_adapter_model.safetensors", "task_learning_state.safetensors"),
    *("report.json", "report.md", "ap_matrix.png", "steps.png", "forgetting.png"),
)


class HubMixin:
    """What the models of the package do differently from transformers where files and the Hub are concerned.

    Precedes `PreTrainedModel` in the bases of a model.
    """

    def card_note(self) -> str | None:
        """What a user of the weights should know, for the model card."""
        return None

    def push_to_hub(self, repo_id: str, *, video_processor=None, **kwargs) -> CommitInfo:
        """Pushes the model, and its video processor if given, with a generated card: see [`push_to_hub`]."""
        return push_to_hub(self, video_processor, repo_id, **kwargs)


def push_to_hub(
    model,
    video_processor,
    repo_id: str,
    *,
    revision: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "50GB",
    tags: list[str] | None = None,
    license: str = "unknown",
    base_model: str | None = None,
    training_summary: dict[str, Any] | None = None,
    report=None,
) -> CommitInfo:
    """Pushes model, video processor and model card to one revision of a repository, in one commit.

    The weights are uploaded before the revision is touched, so an interrupted push leaves it as it was. A new branch
    starts from the first commit of the repository.

    Args:
        model: a `PreTrainedModel`.
        video_processor: its processor, anything with `save_pretrained`; None pushes the model alone, which a pipeline
            cannot load.
        repo_id: "name" or "owner/name"; created if needed.
        revision: branch, created if needed; None is the default branch.
        private, token, create_pr, max_shard_size, tags, commit_message, commit_description: as in transformers.
        license: identifier of the Hub, such as "apache-2.0", for the weights.
        base_model: repository which the training started from.
        training_summary: see [`model_card`]; also uploaded as `training_summary.json`.
        report: see [`model_card`]; its files are uploaded, too.

    Returns:
        The commit, with `commit_url` and `oid`. Pushing what is there already makes no new commit.

    Raises:
        HfHubHTTPError: the Hub refuses; the revision is unchanged.
        RuntimeError: someone else wrote to the revision meanwhile; it is as the other left it.
    """
    with temporary_folder() as folder:
        repo_id = HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id
        save_model(
            model,
            video_processor,
            folder,
            name=repo_id,
            revision=revision,
            tags=tags,
            license=license,
            base_model=base_model,
            training_summary=training_summary,
            report=report,
            max_shard_size=max_shard_size,
        )
        return commit_folder(
            folder,
            repo_id,
            revision=revision,
            commit_message=commit_message or f"Upload {type(model).__name__}",
            commit_description=commit_description,
            token=token,
            create_pr=create_pr,
        )


def commit_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    revision: str | None,
    commit_message: str,
    commit_description: str | None = None,
    token: bool | str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Uploads the files of a folder to one revision of an existing repository, in one commit.

    What the revision holds of `OWNED_FILES` and the folder does not is deleted.

    Args:
        revision, commit_message, commit_description, token, create_pr: as for [`push_to_hub`].

    Raises:
        HfHubHTTPError: the Hub refuses. RuntimeError: someone else wrote to the revision meanwhile. In both cases the
            revision is as it was, or as the other left it.
    """
    api = HfApi(token=token)
    branches = {branch.name: branch.target_commit for branch in api.list_repo_refs(repo_id).branches}
    new_branch = revision is not None and not revision.startswith("refs/pr/") and revision not in branches
    if new_branch:
        # Not from `main`: were this process killed before its commit, the branch would pass off the model of `main` as
        # its own. The first commit of a repository holds no model.
        parent = api.list_repo_commits(repo_id)[-1].commit_id
    else:
        parent = api.repo_info(repo_id, revision=revision).sha
    additions = _additions(Path(folder))
    written = {addition.path_in_repo for addition in additions}
    deletions = [
        CommitOperationDelete(name)
        for name in api.list_repo_files(repo_id, revision=parent)
        if name not in written and any(fnmatch.fnmatch(name, pattern) for pattern in OWNED_FILES)
    ]
    api.preupload_lfs_files(
        repo_id, additions, revision=None if new_branch else revision, create_pr=create_pr, free_memory=False
    )
    if new_branch:
        additions = _additions(Path(folder))  # those above have been compared with `main`, and leave out what it has
        try:
            api.create_branch(repo_id, branch=revision, revision=parent)
        except HfHubHTTPError as error:
            raise _explained(error, repo_id, revision) from error
    try:
        return api.create_commit(
            repo_id,
            additions + deletions,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            parent_commit=parent,
        )
    except BaseException as error:
        if new_branch:  # there is nothing on it
            api.delete_branch(repo_id, branch=revision)
        if isinstance(error, HfHubHTTPError):
            raise _explained(error, repo_id, revision) from error
        raise


def _additions(folder: Path) -> list[CommitOperationAdd]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [CommitOperationAdd(path.relative_to(folder).as_posix(), str(path)) for path in paths]


def _explained(error: HfHubHTTPError, repo_id: str, revision: str | None) -> Exception:
    """A RuntimeError that says so where another writer came first, else the error itself."""
    if error.response is None or error.response.status_code not in (409, 412):
        return error
    return RuntimeError(
        f"{repo_id}, revision {revision or 'main'}: somebody else wrote to it during this push, of which nothing was "
        "committed. Look at what is there now, and push again to replace it."
    )


def save_model(
    model,
    video_processor,
    folder: str | os.PathLike,
    *,
    name: str,
    revision: str | None = None,
    tags: list[str] | None = None,
    license: str = "unknown",
    base_model: str | None = None,
    training_summary: dict[str, Any] | None = None,
    report=None,
    max_shard_size: int | str = "50GB",
) -> None:
    """Writes what [`push_to_hub`] uploads into a folder: weights, configuration, processor, card, summary and report.

    `name` is what the card calls the model and loads it by.
    """
    folder = Path(folder)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if video_processor is not None:
        video_processor.save_pretrained(folder)
    if training_summary:
        write_training_summary(training_summary, folder)
    if report is not None:
        report.save(folder)
    card = model_card(
        model,
        name,
        revision=revision,
        tags=tags,
        license=license,
        base_model=base_model,
        training_summary=training_summary,
        report=report,
    )
    card.save(folder / "README.md")


def write_training_summary(training_summary: dict[str, Any], folder: str | os.PathLike) -> None:
    write_json(Path(folder) / TRAINING_SUMMARY_FILE, training_summary, indent=2)


def read_training_summary(folder: str | os.PathLike) -> dict[str, Any] | None:
    """`training_summary.json` of a model folder, None where there is none."""
    path = Path(folder) / TRAINING_SUMMARY_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def model_card(
    model,
    name: str,
    *,
    revision: str | None = None,
    tags: list[str] | None = None,
    license: str = "unknown",
    base_model: str | None = None,
    training_summary: dict[str, Any] | None = None,
    report=None,
    sections: Mapping[str, str] | None = None,
) -> ModelCard:
    """The card of a model: what it does, its classes, how to load it, what was measured, how it was trained.

    Args:
        sections: further sections, headings to Markdown texts, after "How to load it".
        training_summary: what is known of the training. `metrics` (name -> number) and `dataset` (what they were
            measured on) make the table of measurements; `command`, `seed`, `steps`, `seconds` and `hardware` the
            paragraph on the training. All of them optional.
        report: what was measured task after task: has `to_markdown()` for a section of its own, and `save(folder)`.
    """
    summary = training_summary or {}
    metrics = summary.get("metrics") or {}
    metrics = {key: value for key, value in metrics.items() if value != -1}  # COCO's mark for "nothing to find"
    dataset = summary.get("dataset") or "unknown data"
    data = ModelCardData(
        license=license,
        base_model=base_model,
        library_name="transformers-cvis",
        tags=[TASK, "transformers-cvis", model.config.model_type, *(tags or [])],
        model_name=name.split("/")[-1],
        eval_results=[
            EvalResult(
                task_type=TASK,
                dataset_type="video",
                dataset_name=dataset,
                metric_type=key,
                metric_value=round(float(value), 4),
            )
            for key, value in metrics.items()
        ]
        or None,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name.split('/')[-1]}",
        f"`{type(model).__name__}` for video instance segmentation: it detects, segments and tracks every object of a "
        "video which belongs to one of its classes.",
        _overview(model, license, base_model),
        "## How to load it",
        _how_to_load(name, revision),
    ]
    for heading, text in (sections or {}).items():
        parts += [f"## {heading}", text]
    if report is not None:
        parts += ["## After every task", report.to_markdown().strip()]
    parts += ["## Measured", _measurements(metrics, dataset)]
    if training := _training(summary):
        parts += ["## Training", training]
    return ModelCard("\n\n".join(parts) + "\n", ignore_metadata_errors=True)


def _overview(model, license: str, base_model: str | None) -> str:
    labels = [model.config.id2label[index] for index in sorted(model.config.id2label)]
    rows = {
        "Task": "video instance segmentation",
        "Parameters": f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M",
        "Classes": f"{len(labels)}: {', '.join(labels)}",
        "Starts from": base_model or "no published base",
        "Licence": license,
    }
    table = "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items())])
    note = model.card_note() if isinstance(model, HubMixin) else None
    return f"{table}\n\n{note}" if note else table


def _how_to_load(name: str, revision: str | None) -> str:
    arguments = f'"{name}"' + (f', revision="{revision}"' if revision else "")
    return f"""Install `transformers_cvis` from its repository and import it first: it registers this task and its
architectures with transformers, which otherwise does not know them.

```python
import transformers_cvis
from transformers import pipeline

segmenter = pipeline("video-instance-segmentation", model={arguments})
tracks = segmenter("clip.mp4")["tracks"]
```

```python
import transformers_cvis
from transformers import AutoVideoProcessor

model = transformers_cvis.AutoModelForVideoInstanceSegmentation.from_pretrained({arguments})
video_processor = AutoVideoProcessor.from_pretrained({arguments})
```"""


def _measurements(metrics: dict[str, float], dataset: str) -> str:
    if not metrics:
        return "Nothing was measured."
    rows = [f"| {key} | {value:.4g} |" for key, value in metrics.items()]
    return "\n".join([f"On {dataset}.", "", "| metric | value |", "| --- | --- |", *rows])


def _training(summary: dict[str, Any]) -> str:
    facts = []
    if "seed" in summary:
        facts.append(f"Seed {summary['seed']}.")
    if "steps" in summary:
        facts.append(f"{summary['steps']} steps.")
    if "seconds" in summary:
        hardware = f" on {summary['hardware']}" if "hardware" in summary else ""
        facts.append(f"{summary['seconds'] / 60:.0f} minutes{hardware}.")
    paragraphs = [" ".join(facts)] if facts else []
    if "command" in summary:
        paragraphs.append(f"```\n{summary['command']}\n```")
    return "\n\n".join(paragraphs)


__all__ = ["HubMixin", "model_card", "push_to_hub", "read_training_summary", "save_model"]
