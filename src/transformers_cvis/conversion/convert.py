# SPDX-License-Identifier: Apache-2.0
"""Convert a released checkpoint file into a model folder for `from_pretrained`.

The configuration comes from the shapes of the tensors, and the weights from rules that rename them. The `Conversion` of
a system, which its file in `released/` declares, holds both.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import Mask2FormerConfig, Mask2FormerImageProcessor, PreTrainedConfig

from ..files import complete_folder
from ..hub.card import CardInfo
from ..hub.push import save_model
from ..messages import did_you_mean
from ..processing import CvisVideoProcessor
from .gradient_basis import GRADIENT_BASIS_FILE
from .reading import ReleasedCheckpoint, read_checkpoint
from .released.mask2former import current_names
from .released.tasks import count_tasks, task_of
from .report import ConversionError, ConversionReport
from .rules import Conversion, Ignore, Rename, Rule, count_indices
from .systems import CONVERSIONS, find_conversion

LONG_SIDE = 1333  # of videos and images, in pixels
IMAGE_SHORT_SIDE = 800  # of the test images of Mask2Former, in pixels
# Weights of transformers' Mask2Former that no checkpoint has: the first follows from the configuration, and no feature
# map passes through the norm of Swin.
WEIGHTS_WITHOUT_SOURCE = ("criterion.empty_weight", ".encoder.swin.layernorm.weight", ".encoder.swin.layernorm.bias")
SHOWN_NAMES = 3  # of a list of names in an error


def convert_checkpoint(
    checkpoint: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    system: str,
    *,
    class_names: Sequence[str] | None = None,
    task: int | None = None,
    settings: Mapping[str, Any] | None = None,
    short_side: int | None = None,
    allow_missing: bool = False,
    license: str = "unknown",
) -> ConversionReport:
    """Convert a checkpoint that research code released into a model folder.

    Args:
        checkpoint: file with Detectron2's names, see `read_checkpoint`.
        output_dir: new or empty folder for configuration, weights, video processor and card.
        system: key of `CONVERSIONS`. "mask2former" writes the format of transformers, with an image processor as well.
        class_names: names in the order of the class head; LABEL_0, LABEL_1, ... by default. A model that learns task by
            task takes as many of them as its tasks have classes, from the first.
        task: for a model that learns task by task: cut it back to its state after this task, 0 for the base. By default
            it keeps all tasks.
        settings: configuration fields that take precedence over those from the shapes, for example `clip_length` or
            `encoder_window_size`, which no shape shows.
        short_side: short side of videos in pixels; by default as published for the system and its backbone.
        allow_missing: leave out unknown tensors, and initialise weights that the file lacks.
        license: licence of the weights, for the card.

    Returns:
        What became of every tensor and weight.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        FileExistsError: `output_dir` is in use.
        OSError: `output_dir` cannot be written.
        ConversionError: the checkpoint does not fit the system: it belongs to another one, has unknown names, or lacks
            weights.
        ValueError: the system or the task is unknown, the file is not a checkpoint, the settings do not fit the model,
            or the number of class names is wrong.
    """
    conversion = find_conversion(system)
    with complete_folder(output_dir) as folder:
        source = read_checkpoint(checkpoint)
        released, later = (source.tensors, {}) if task is None else _until_task(source.tensors, task)
        try:
            plan = _make_plan(released, system)
        except ValueError as error:
            _, report = convert_state_dict(released, system)
            raise ConversionError(f"{checkpoint}: {error}{_advice(released, system)}", report) from error
        changes = {**_checked_settings(settings or {}, plan.config), **_labels(class_names, plan.config, released)}
        if changes:
            plan = _make_plan(released, system, **changes)
        config, report = plan.config, plan.report
        report.ignored |= later
        _check_fit(checkpoint, released, system, report, allow_missing, has_class_names=class_names is not None)
        short_side = short_side or _published_short_side(conversion, config)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same file always gives the same model, newly initialised weights included
            model = conversion.model_class(config)
        model.load_state_dict(plan.weights, strict=False)
        processor = CvisVideoProcessor(size={"shortest_edge": short_side, "longest_edge": LONG_SIDE})
        save_model(model, processor, folder, CardInfo(license=license), name=Path(output_dir).name)
        if type(config) is Mask2FormerConfig:
            size = {"shortest_edge": IMAGE_SHORT_SIDE, "longest_edge": LONG_SIDE}
            Mask2FormerImageProcessor(size=size, ignore_index=255).save_pretrained(folder)

    report.notes += [
        f"{_description(config)}; videos are resized to a short side of {short_side} pixels.",
        *_notes_on_settings(conversion, config, changes, class_names),
        *_notes_on_file(Path(checkpoint), source, task),
    ]
    return report


def convert_state_dict(
    state_dict: Mapping[str, torch.Tensor], system: str
) -> tuple[dict[str, torch.Tensor], ConversionReport]:
    """Rename the tensors of a released checkpoint.

    Args:
        state_dict: released names to tensors.
        system: key of `CONVERSIONS`, for example "mask2former".

    Returns:
        The tensors under the names of this package, with packed projections split, and the report on every name.

    Raises:
        ValueError: the system is unknown.
    """
    rules = [(re.compile(rule.pattern), rule) for rule in find_conversion(system).rules()]
    converted: dict[str, torch.Tensor] = {}
    report = ConversionReport()
    for name, current_name in current_names(state_dict).items():
        found = _first_match(current_name, rules)
        if found is None:
            report.unknown.append(name)
            continue
        match, rule = found
        if isinstance(rule, Ignore):
            report.ignored[name] = rule.reason
            continue
        targets, parts = _split(state_dict[name], rule, match, state_dict)
        for target, part in zip(targets, parts, strict=True):
            converted[target] = part.clone()
            # Detectron2's frozen norms do not count batches, but the batch norms of this package do.
            if target.endswith(".running_var"):
                converted[target.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
        report.mapped[name] = targets
    return converted, report


# Tensors and configuration


@dataclass(frozen=True)
class _Plan:
    """Hold what a checkpoint becomes: a configuration, weights under the names of the model, and a report."""

    config: PreTrainedConfig
    weights: dict[str, torch.Tensor]
    report: ConversionReport


def _make_plan(released: dict[str, torch.Tensor], system: str, **settings: Any) -> _Plan:
    """Convert tensors and configuration without building the model.

    Raises:
        ValueError: the configuration cannot be read from the tensors, or needs tensors of other shapes.
    """
    conversion = find_conversion(system)
    weights, report = convert_state_dict(released, system)
    names = current_names(released)
    try:
        config = conversion.infer_config({names[name]: tensor for name, tensor in released.items()}, **settings)
        with torch.device("meta"):
            expected = conversion.model_class(config).state_dict()
    except KeyError as error:
        raise ValueError(f"The checkpoint lacks {error.args[0]}, so it is not {system}.") from error
    except StrictDataclassError as error:
        raise ValueError(str(error).rpartition("Error: ")[2]) from error
    for name, targets in list(report.mapped.items()):
        if not expected.keys() >= set(targets):
            del report.mapped[name]
            report.unknown.append(name)
    weights = {name: tensor for name, tensor in weights.items() if name in expected}
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{name} has the shape {tuple(tensor.shape)} in the checkpoint, but {tuple(expected[name].shape)} in "
                "the model with these settings."
            )
    missing = expected.keys() - weights.keys()
    report.missing = [name for name in expected if name in missing and not name.endswith(WEIGHTS_WITHOUT_SOURCE)]
    return _Plan(config, weights, report)


def _first_match(name: str, rules: Sequence[tuple[re.Pattern[str], Rule]]) -> tuple[re.Match[str], Rule] | None:
    for pattern, rule in rules:
        if match := pattern.fullmatch(name):
            return match, rule
    return None


def _split(
    tensor: torch.Tensor, rule: Rename, match: re.Match[str], released: Mapping[str, torch.Tensor]
) -> tuple[tuple[str, ...], Sequence[torch.Tensor]]:
    """Return the names that a tensor gets in the model, and the part of it for each."""
    targets = tuple(match.expand(target) for target in rule.targets)
    if rule.squeeze:
        tensor = tensor.squeeze(0)
    if rule.copies is not None:
        targets = tuple(targets[0].replace("*", str(index)) for index in range(count_indices(released, rule.copies)))
        return targets, [tensor] * len(targets)
    return targets, tensor.chunk(len(targets)) if len(targets) > 1 else [tensor]


def _until_task(tensors: dict[str, torch.Tensor], task: int) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors of the model after `task`, and for each other name why it is ignored."""
    num_tasks = count_tasks(tensors)
    if not num_tasks:
        raise ValueError("The checkpoint has no class heads of tasks: leave out --task (`task`).")
    if not 0 <= task < num_tasks:
        raise ValueError(f"The checkpoint holds the tasks 0 to {num_tasks - 1}, but not task {task}.")
    later = {name: f"belongs to task {task_of(name)}" for name in tensors if task_of(name) > task}
    return {name: tensor for name, tensor in tensors.items() if name not in later}, later


# Checks


def _check_fit(
    checkpoint: str | os.PathLike[str],
    released: dict[str, torch.Tensor],
    system: str,
    report: ConversionReport,
    allow_missing: bool,
    has_class_names: bool,
) -> None:
    """Raise a `ConversionError` unless the report allows the conversion."""
    problems = []
    if report.unknown:
        problems.append(f"{len(report.unknown)} of {len(released)} tensors are unknown ({_some(report.unknown)})")
    if report.missing:
        problems.append(f"{len(report.missing)} weights are missing ({_some(report.missing)})")
    if not report.mapped or (problems and not allow_missing):
        advice = _advice(released, system, len(report.missing) if not report.unknown else None)
        raise ConversionError(
            f"{checkpoint} does not fit {system}: {' and '.join(problems) or 'none of its tensors has a place'}."
            f"{advice} Use --allow-missing (`allow_missing=True`) to convert it anyway: unknown tensors are left out, "
            "and missing weights are newly initialised.",
            report,
        )
    if not has_class_names and any("class_predictor" in name for name in report.missing):
        raise ConversionError(
            f"{checkpoint} has no class head: give the names of the classes with --classes (`class_names`).", report
        )


def _advice(released: dict[str, torch.Tensor], system: str, num_missing: int | None = None) -> str:
    """Suggest a better `--system`.

    Args:
        released: released names to tensors.
        system: the system that does not fit.
        num_missing: number of weights that `system` lacks; None if it does not fit at all.

    Returns:
        A sentence with a leading space, or "" if no other system knows all tensors and lacks fewer weights.
    """
    missing = {}
    for other in CONVERSIONS:
        try:
            report = _make_plan(released, other).report
        except ValueError:
            continue
        if not report.unknown and other != system:
            missing[other] = len(report.missing)
    least = min(missing.values(), default=None)
    if least is None or (num_missing is not None and least >= num_missing):
        return ""
    *others, last = [other for other, number in missing.items() if number == least]
    systems = f"{', '.join(others)} or {last}" if others else last
    if least:
        return f" A better match is --system {systems}, with {least} weights missing."
    return f" A complete match is --system {systems}."


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")


def _checked_settings(settings: Mapping[str, Any], config: PreTrainedConfig) -> Mapping[str, Any]:
    """Return the settings if all of them are fields of `config`.

    Raises:
        ValueError: a setting is not a field, or concerns the class names.
    """
    known = {field.name for field in fields(config)} - {"id2label", "label2id"}
    for name in settings:
        if name in ("id2label", "label2id"):
            raise ValueError(f"{name} is not a setting: give the names of the classes with --classes (`class_names`).")
        if name not in known:
            raise ValueError(f"{type(config).__name__} has no field {name!r} to set.{did_you_mean(name, known)}")
    return settings


def _labels(
    class_names: Sequence[str] | None, config: PreTrainedConfig, released: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """Return `class_names` as a setting.

    Raises:
        ValueError: the class head has another number of classes.
    """
    if class_names is None:
        return {}
    names, num_classes = list(class_names), config.num_labels or 0
    if not any("class_embed." in name for name in released):
        return {"id2label": dict(enumerate(names))}
    if len(names) < num_classes or (len(names) > num_classes and not count_tasks(released)):
        raise ValueError(
            f"The checkpoint has {num_classes} classes, but {len(names)} names were given: name the classes of the "
            "data that it was trained on, in the order of their category ids."
        )
    return {"id2label": dict(enumerate(names[:num_classes]))}


# Sizes and notes


def _backbone(config: PreTrainedConfig) -> PreTrainedConfig:
    return getattr(config, "detector_config", config).backbone_config


def _published_short_side(conversion: Conversion, config: PreTrainedConfig) -> int:
    backbone = _backbone(config).model_type
    if backbone not in conversion.short_sides:
        raise ValueError(
            f"The short side of videos is not known for the backbone {backbone}: give it with --short-side "
            "(`short_side`)."
        )
    return conversion.short_sides[backbone]


def _description(config: PreTrainedConfig) -> str:
    backbone = _backbone(config)
    depths = "-".join(map(str, backbone.depths))
    classes = f"{config.num_labels} classes"
    tasks = getattr(config, "task_class_counts", None)
    if tasks and len(tasks) > 1:
        classes += f" of {len(tasks)} tasks ({' + '.join(map(str, tasks))})"
    sizes = f"{backbone.model_type} backbone of {depths} blocks, {config.num_queries} queries, {classes}"
    return f"{config.model_type}: {sizes}"


def _notes_on_settings(
    conversion: Conversion, config: PreTrainedConfig, settings: Mapping[str, Any], class_names: Sequence[str] | None
) -> list[str]:
    """Name what the tensors do not show: fields with assumed values, and classes without names."""
    notes = []
    if assumed := [name for name in conversion.assumed_fields if name not in settings]:
        values = ", ".join(f"{name}={getattr(config, name)}" for name in assumed)
        notes.append(f"The tensors do not show {values}; change it with --set (`settings`).")
    if conversion.note:
        notes.append(conversion.note)
    num_classes = config.num_labels or 0
    if class_names is None:
        notes.append("The classes are called LABEL_0, LABEL_1, ...; name them with --classes (`class_names`).")
    elif len(class_names) > num_classes:
        notes.append(f"The classes have the first {num_classes} of the {len(class_names)} names.")
    return notes


def _notes_on_file(checkpoint: Path, source: ReleasedCheckpoint, task: int | None) -> list[str]:
    """Name what the file, or its folder, holds besides the model."""
    notes = []
    if task is not None:
        last = count_tasks(source.tensors) - 1
        if task == last:
            notes.append(f"Task {task} is the last task of the checkpoint.")
        else:
            notes.append(
                f"The tasks after task {task} are left out. The no-object heads are those after task {last}, since "
                f"every task trains them: the checkpoint that was saved after task {task} has others."
            )
    if source.left_out:
        notes.append(f"Left out, since these are not weights: {', '.join(source.left_out)}.")
    if (checkpoint.parent / GRADIENT_BASIS_FILE).is_file():
        notes.append(
            f"{GRADIENT_BASIS_FILE} next to the checkpoint is not part of the model. To protect its directions in "
            "later tasks, read it with `transformers_cvis.conversion.read_gradient_basis`."
        )
    return notes
