"""A released checkpoint file in, a model folder for `from_pretrained` out."""

import difflib
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import Mask2FormerConfig, Mask2FormerImageProcessor, PreTrainedConfig

from ..hub.card import CardInfo
from ..hub.push import save_model
from ..processing import CvisVideoProcessor, complete_folder
from .convert import ConversionReport, convert_state_dict, current_names
from .gradient_basis import GRADIENT_BASIS_FILE
from .reading import read_checkpoint
from .released.tasks import count_tasks, task_of
from .systems import SYSTEMS

LONG_SIDE = 1333
IMAGE_SHORT_SIDE = 800  # of Mask2Former's test images
# Of transformers' Mask2Former: what follows from the configuration, and a norm of Swin that no map passes.
WEIGHTS_WITHOUT_SOURCE = ("criterion.empty_weight", ".encoder.swin.layernorm.weight", ".encoder.swin.layernorm.bias")
SHOWN_NAMES = 3

Plan = tuple[PreTrainedConfig, dict[str, torch.Tensor], ConversionReport]


class ConversionError(ValueError):
    """A checkpoint and a system that do not fit each other.

    Attributes:
        report (`ConversionReport`): what would become of every tensor.
    """

    def __init__(self, message: str, report: ConversionReport):
        super().__init__(message)
        self.report = report


def convert_checkpoint(
    checkpoint: str | os.PathLike,
    output_dir: str | os.PathLike,
    system: str,
    *,
    class_names: Sequence[str] | None = None,
    task: int | None = None,
    settings: dict[str, Any] | None = None,
    short_side: int | None = None,
    allow_missing: bool = False,
    license: str = "unknown",
) -> ConversionReport:
    """Converts a checkpoint released by research code; sizes come from its tensors.

    Args:
        checkpoint: a file with Detectron2's names, see `read_checkpoint`.
        output_dir: a new or empty folder; gets configuration, weights, video processor and card.
        system: a key of `SYSTEMS`. "mask2former" gives the format of transformers, with an image processor as well.
        class_names: in the order of the class head; by default LABEL_0, LABEL_1, ... A model that learns by tasks
            takes the first of them, as many as its tasks have brought.
        task: of a model that learns by tasks: what it is after this task, 0 for the base; by default after the last.
        settings: configuration fields that shapes do not tell, for example `clip_length` or `encoder_window_size`.
        short_side: of videos, in pixels; by default as published for system and backbone.
        allow_missing: leave out tensors that the system does not know, and start weights anew that the file lacks.
        license: of the weights, for the card.

    Returns:
        What became of every tensor.

    Raises:
        FileNotFoundError: no such checkpoint. FileExistsError: `output_dir` is in use. OSError: it cannot be written.
        ConversionError: another system's checkpoint, names that the system does not have, or weights that are missing.
        ValueError: no such system or task, a file that is no checkpoint, settings that do not fit it, or another number
            of classes than `class_names`.
    """
    if system not in SYSTEMS:
        raise ValueError(f"There is no converter for {system!r}; there are {', '.join(sorted(SYSTEMS))}.")
    with complete_folder(output_dir) as folder:
        source = read_checkpoint(checkpoint)
        released, later = (source.tensors, {}) if task is None else _until_task(task, source.tensors)
        try:
            config, weights, report = _plan(released, system)
        except ValueError as error:
            _, report = convert_state_dict(released, system)
            raise ConversionError(f"{checkpoint}: {error}{_advice(released, system)}", report) from error
        settings = {**_known(settings or {}, config), **_labels(class_names, config, released)}
        if settings:
            config, weights, report = _plan(released, system, **settings)
        report.ignored |= later
        _check_fit(checkpoint, released, system, report, allow_missing, named=class_names is not None)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # one file gives one model, weights that start anew included
            model = SYSTEMS[system].model_class(config)
        model.load_state_dict(weights, strict=False)
        side = short_side or SYSTEMS[system].short_sides[_backbone(config).model_type]
        processor = CvisVideoProcessor(size={"shortest_edge": side, "longest_edge": LONG_SIDE})
        save_model(model, processor, folder, CardInfo(license=license), name=Path(output_dir).name)
        if type(config) is Mask2FormerConfig:
            size = {"shortest_edge": IMAGE_SHORT_SIDE, "longest_edge": LONG_SIDE}
            Mask2FormerImageProcessor(size=size, ignore_index=255).save_pretrained(folder)

    report.notes.append(f"{_description(config)}; videos are read with a short side of {side} pixels.")
    if untold := [name for name in SYSTEMS[system].untold if name not in settings]:
        values = ", ".join(f"{name}={getattr(config, name)}" for name in untold)
        report.notes.append(f"No tensor tells {values}; --set changes it.")
    if SYSTEMS[system].remark:
        report.notes.append(SYSTEMS[system].remark)
    if class_names is None:
        report.notes.append("The classes are called LABEL_0, LABEL_1, ...; --classes names them.")
    elif len(class_names) > config.num_labels:
        report.notes.append(f"The classes have the first {config.num_labels} of the {len(class_names)} names.")
    if task is not None:
        report.notes.append(_task_note(task, count_tasks(source.tensors) - 1))
    if source.left_out:
        report.notes.append(f"Left out, as no weights: {', '.join(source.left_out)}.")
    if (Path(checkpoint).parent / GRADIENT_BASIS_FILE).is_file():
        report.notes.append(
            f"{GRADIENT_BASIS_FILE} beside the checkpoint is no part of the model. To go on learning with the "
            "directions that it protects, read it with `transformers_cvis.conversion.read_gradient_basis`."
        )
    return report


# What a checkpoint would become


def _plan(released: dict[str, torch.Tensor], system: str, **settings) -> Plan:
    """Configuration, weights under the names of the model, and report.

    Raises:
        ValueError: sizes cannot be read from the tensors, or tensors have other sizes than the configuration.
    """
    weights, report = convert_state_dict(released, system)
    names = current_names(released)
    try:
        config = SYSTEMS[system].infer_config({names[name]: released[name] for name in released}, **settings)
        with torch.device("meta"):
            expected = SYSTEMS[system].model_class(config).state_dict()
    except KeyError as error:
        raise ValueError(f"It lacks {error.args[0]}, from which a size of {system} is read.") from error
    except StrictDataclassError as error:
        raise ValueError(str(error).rpartition("Error: ")[2]) from error
    for name, places in list(report.mapped.items()):
        if not expected.keys() >= set(places):
            del report.mapped[name]
            report.unknown.append(name)
    weights = {name: tensor for name, tensor in weights.items() if name in expected}
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{name} has the shape {tuple(tensor.shape)} in the checkpoint and {tuple(expected[name].shape)} in "
                "the model that is asked for."
            )
    missing = expected.keys() - weights.keys()
    report.fresh = [name for name in expected if name in missing and not name.endswith(WEIGHTS_WITHOUT_SOURCE)]
    return config, weights, report


def _check_fit(
    checkpoint: str | os.PathLike,
    released: dict[str, torch.Tensor],
    system: str,
    report: ConversionReport,
    allow_missing: bool,
    named: bool,
) -> None:
    problems = []
    if report.unknown:
        problems.append(
            f"{len(report.unknown)} of its {len(released)} tensors have names that {system} does not know "
            f"({_some(report.unknown)})"
        )
    if report.fresh:
        problems.append(f"it lacks {len(report.fresh)} weights of {system} ({_some(report.fresh)})")
    if not report.mapped or (problems and not allow_missing):
        raise ConversionError(
            f"{checkpoint} does not fit {system}: {' and '.join(problems) or 'it holds nothing of it'}."
            f"{_advice(released, system, len(report.fresh) if not report.unknown else None)} With --allow-missing it "
            "converts all the same, without the unknown tensors and with missing weights that start anew.",
            report,
        )
    if not named and any("class_predictor" in name for name in report.fresh):
        raise ConversionError(f"{checkpoint} has no class head: give the names of the classes (--classes).", report)


def _advice(released: dict[str, torch.Tensor], system: str, num_missing: int | None = None) -> str:
    """Which other system the checkpoint is of, a sentence, where there is one that lacks less than `num_missing`."""
    missing = {}
    for other in SYSTEMS:
        try:
            _, _, report = _plan(released, other)
        except ValueError:
            continue
        if not report.unknown and other != system:
            missing[other] = len(report.fresh)
    least = min(missing.values(), default=None)
    if least is None or (num_missing is not None and least >= num_missing):
        return ""
    *others, nearest = [other for other, number in missing.items() if number == least]
    if others:
        nearest = f"{', '.join(others)} or {nearest}"
    return f" --system {nearest} lacks {least} weights only." if least else f" It is complete as --system {nearest}."


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")


# What the user says of it


def _known(settings: dict[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
    """`settings`, all of which are fields of `config`."""
    known = {field.name for field in fields(config)} - {"id2label", "label2id"}
    for name in settings:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {nearest[0]}?" if nearest else " Classes are named with --classes."
            raise ValueError(f"{type(config).__name__} has no field {name} to set.{hint}")
    return settings


def _labels(
    class_names: Sequence[str] | None, config: PreTrainedConfig, released: dict[str, torch.Tensor]
) -> dict[str, Any]:
    if class_names is None:
        return {}
    names, count = list(class_names), config.num_labels
    has_head = any("class_embed." in name for name in released)
    if has_head and (len(names) < count or (len(names) > count and not count_tasks(released))):
        raise ValueError(
            f"The checkpoint has {count} classes, but {len(names)} names were given: name the classes of the data that "
            "it was trained on, in the order of their category ids."
        )
    return {"id2label": dict(enumerate(names[:count] if has_head else names))}


def _until_task(task: int, tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors that the model has after `task`, and why the others are ignored."""
    num_tasks = count_tasks(tensors)
    if not num_tasks:
        raise ValueError("This checkpoint has no class heads of tasks, so there is no --task to choose.")
    if not 0 <= task < num_tasks:
        raise ValueError(f"The checkpoint holds the tasks 0 to {num_tasks - 1}; there is no task {task}.")
    later = {name: f"belongs to task {task_of(name)}" for name in tensors if task_of(name) > task}
    return {name: tensor for name, tensor in tensors.items() if name not in later}, later


# What the user is told


def _backbone(config: PreTrainedConfig) -> PreTrainedConfig:
    return getattr(config, "detector_config", config).backbone_config


def _description(config: PreTrainedConfig) -> str:
    backbone = _backbone(config)
    depths = "-".join(map(str, backbone.depths))
    parts = [f"{backbone.model_type} backbone of {depths} blocks", f"{config.num_queries} queries"]
    tasks = getattr(config, "task_class_counts", None)
    classes = f"{config.num_labels} classes"
    if tasks and len(tasks) > 1:
        classes += f" of {len(tasks)} tasks ({' + '.join(map(str, tasks))})"
    return f"{config.model_type}: {', '.join([*parts, classes])}"


def _task_note(task: int, last: int) -> str:
    if task == last:
        return f"Task {task} is the last one of the checkpoint."
    return (
        f"What came after task {task} is left out. The no-object heads, which every task trains further, are those of "
        f"task {last}: the checkpoint that was saved after task {task} has its own."
    )
