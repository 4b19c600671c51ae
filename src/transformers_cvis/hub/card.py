# SPDX-License-Identifier: Apache-2.0
"""Model cards: task and classes of a model, how to load it, its measurements, and its training."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

from ..files import write_json
from .owned_files import declare_owned_files

TASK = "video-instance-segmentation"
LIBRARY = "transformers-cvis"
TRAINING_SUMMARY_FILE = "training_summary.json"
NOTHING_TO_FIND = -1  # value of COCO for a measurement over no objects

declare_owned_files(TRAINING_SUMMARY_FILE)


class Report(Protocol):
    """Measurements after every task of a schedule, with the methods that a card and a push need."""

    def to_markdown(self) -> str:
        """Return the section of the card."""

    def save(self, folder: str | os.PathLike) -> Any:
        """Write the report's files into a folder. One of them is `REPORT_FILE`, which lists them all as "files"."""


@dataclass(frozen=True)
class CardInfo:
    """Content of a model card beyond the model itself, and files that go with it. All fields are optional.

    Attributes:
        license (`str`, defaults to "unknown"): identifier of the Hub, such as "apache-2.0", for the weights.
        base_model (`str`, *optional*): repository that the training started from; for a task adapter, that of its base.
        tags (`Sequence[str]`, defaults to none): further tags of the Hub, after those that every model gets.
        training_summary (`Mapping[str, Any]`, *optional*): facts on the training, saved as `training_summary.json`.
            "metrics" (names to numbers; those that begin with AP or AR are shares of 1, and -1 is left out) and
            "dataset" (what they were measured on) make the table of measurements; "command", "seed", "steps",
            "seconds" and "hardware" make the section on the training. Every key is optional.
        report ([`Report`], *optional*): measurements after every task; a section of the card, and files of its own.
        sections (`Mapping[str, str]`, defaults to none): further sections, headings to Markdown texts, which follow
            "How to load it".
    """

    license: str = "unknown"
    base_model: str | None = None
    tags: Sequence[str] = ()
    training_summary: Mapping[str, Any] | None = None
    report: Report | None = None
    sections: Mapping[str, str] = field(default_factory=dict)


def model_card(model: PreTrainedModel, name: str, card: CardInfo, *, revision: str | None = None) -> ModelCard:
    """Build the card of a model.

    Args:
        model: model to describe by its class, size and classes, and by `card_title(name)` and `card_note()` if it has
            these methods.
        name: the repository, or the folder, that loads the model.
        card: further content.
        revision: the revision that loads the model; None is the default branch.

    Returns:
        The card, with its metadata. AP and AR are percent (0 to 100) everywhere on it.
    """
    title = model.card_title(name) if hasattr(model, "card_title") else last_part(name)
    summary = card.training_summary or {}
    metrics = {key: value for key, value in (summary.get("metrics") or {}).items() if value != NOTHING_TO_FIND}
    dataset = summary.get("dataset") or "unknown data"
    data = ModelCardData(
        license=card.license,
        base_model=card.base_model,
        library_name=LIBRARY,
        tags=[TASK, LIBRARY, model.config.model_type, *card.tags],
        model_name=title,
        eval_results=_eval_results(metrics, dataset) or None,
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {title}",
        f"`{type(model).__name__}` for video instance segmentation: it detects, segments and tracks every object of a "
        "video that belongs to one of its classes.",
        _overview(model, card),
        "## How to load it",
        _how_to_load(name, revision),
    ]
    for heading, text in card.sections.items():
        parts += [f"## {heading}", text]
    if card.report is not None:
        parts += ["## After every task", card.report.to_markdown().strip()]
    parts += ["## Measured", _measurements(metrics, dataset)]
    if training := _training(summary):
        parts += ["## Training", training]
    return ModelCard("\n\n".join(parts) + "\n", ignore_metadata_errors=True)


def name_of_folder(folder: str | os.PathLike) -> str:
    """Return the last two parts of a folder's path, as the name of its model on a card.

    The last part alone, such as `task-1`, would not name the model of the task.
    """
    return "/".join(Path(folder).resolve().parts[-2:])


def last_part(name: str) -> str:
    """Return the name of a repository without its owner, or of a folder without its parents."""
    return name.rstrip("/").split("/")[-1]


def write_training_summary(training_summary: Mapping[str, Any], folder: str | os.PathLike) -> None:
    """Write `training_summary.json` into a folder.

    Raises:
        OSError: the file cannot be written.
    """
    write_json(Path(folder) / TRAINING_SUMMARY_FILE, training_summary, indent=2)


def read_training_summary(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Return the content of the `training_summary.json` of a model folder, or None if it has none."""
    path = Path(folder) / TRAINING_SUMMARY_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _is_share(metric: str) -> bool:
    return metric.startswith(("AP", "AR"))


def _eval_results(metrics: Mapping[str, float], dataset: str) -> list[EvalResult]:
    """Build the metadata of the measurements; shares become percent, as in the table of the card."""
    results = []
    for metric, value in metrics.items():
        is_share = _is_share(metric)
        result = EvalResult(
            task_type=TASK,
            dataset_type="video",
            dataset_name=dataset,
            metric_type=metric,
            metric_name=f"{metric} (percent)" if is_share else None,
            metric_value=round(100 * float(value), 2) if is_share else round(float(value), 4),
        )
        results.append(result)
    return results


def _overview(model: PreTrainedModel, card: CardInfo) -> str:
    labels = [model.config.id2label[index] for index in sorted(model.config.id2label)]
    rows = {
        "Task": "video instance segmentation",
        "Parameters": f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} M",
        "Classes": f"{len(labels)}: {', '.join(labels)}",
        "Starts from": card.base_model or "no published base",
        "Licence": card.license,
    }
    table = "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items())])
    note = model.card_note() if hasattr(model, "card_note") else None
    return f"{table}\n\n{note}" if note else table


def _how_to_load(name: str, revision: str | None) -> str:
    arguments = f'"{name}"' + (f', revision="{revision}"' if revision else "")
    return f"""Install `transformers_cvis` from its repository and import it first: it registers this task and its
architectures with transformers, which otherwise does not know them.

```python
import transformers_cvis
from transformers import pipeline

segmenter = pipeline("{TASK}", model={arguments})
tracks = segmenter("clip.mp4")["tracks"]
```

```python
import transformers_cvis
from transformers import AutoVideoProcessor

model = transformers_cvis.AutoModelForVideoInstanceSegmentation.from_pretrained({arguments})
video_processor = AutoVideoProcessor.from_pretrained({arguments})
```"""


def _measurements(metrics: Mapping[str, float], dataset: str) -> str:
    if not metrics:
        return "Nothing was measured."
    rows = [
        f"| {metric} | {100 * value:.2f} % |" if _is_share(metric) else f"| {metric} | {value:.4g} |"
        for metric, value in metrics.items()
    ]
    return "\n".join([f"On {dataset}.", "", "| metric | value |", "| --- | --- |", *rows])


def _training(summary: Mapping[str, Any]) -> str:
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


__all__ = ["CardInfo", "Report", "model_card", "read_training_summary", "write_training_summary"]
