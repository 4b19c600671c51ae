"""Recipes: everything a training run depends on, as nested dataclasses read from one YAML file."""

import dataclasses
import json
import re
import types
import typing
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import yaml

from ..data import ClassFilter, ClipAugmentation, LargeScaleJitter, RandomRotation
from ..messages import check_at_least, check_choice, did_you_mean
from ..modeling.auto import SYSTEMS

RECIPES_DIRECTORY = Path(__file__).parent / "recipes"


@dataclass
class ModelRecipe:
    """Where the weights start.

    init_from: folder or Hub repository of a model to start from; None trains from scratch. A Mask2Former or MinVIS
        checkpoint gives its frame detector to any system, a VITA checkpoint starts a GenVIS model, an online SPVIS
        checkpoint the offline stage.
    revision: branch, tag or commit of a Hub repository.
    config: overrides of the model configuration (nested, e.g. `detector_config: {hidden_dim: 64}`); with
        `init_from` they are applied on top of its configuration.
    gradient_checkpointing: recompute activations in the backward pass to save memory.
    """

    init_from: str | None = None
    revision: str | None = None
    config: dict = field(default_factory=dict)
    gradient_checkpointing: bool = False


@dataclass
class SourceRecipe:
    """One data set.

    json: annotation file. images: folder that the file names in it start from. kind: "videos" in YouTube-VIS format,
        or "images" in COCO format: a training clip then is copies of one image, rotated one after the other.
    class_mapping: from category names to class names, e.g. `{person: human}`, or the name of a published mapping of
        COCO's categories ("ytvis2019", "ytvis2021", "ytvis2022", "ovis"); categories without an entry are dropped.
        None: categories are classes.
    classes: fields of `transformers_cvis.data.ClassFilter`, by which a schedule hides other tasks; None hides nothing.
    ratio: relative probability that a training sample comes from this source, when there are several. use: false
        leaves the source out.
    """

    json: str
    images: str
    kind: Literal["videos", "images"] = "videos"
    class_mapping: str | dict | None = None
    classes: ClassFilter | None = None
    ratio: float = 1.0
    use: bool = True


@dataclass
class DataRecipe:
    """What the model sees.

    train: one source, or a list of them. valid: the source evaluated on, None for no evaluation.
    num_frames: frames of one training clip. frame_range: they are drawn at most this many frames away from a
        reference frame; None takes consecutive frames. reverse_probability: share of the clips that run backwards.
    augmentation: fields of `transformers_cvis.data.ClipAugmentation`, whose defaults are those of VITA and GenVIS, or
        of `LargeScaleJitter`, for pre-training on images. image_rotation: fields of
        `transformers_cvis.data.RandomRotation`, which frames of an image get besides; None does not rotate.
    class_names: classes in label order; None takes those of the first source in `train`, in the order of their ids.
    num_workers: processes that prepare batches ahead; 0 prepares them in the training process.
    """

    train: list[SourceRecipe]
    num_frames: int
    frame_range: int | None
    valid: SourceRecipe | None = None
    reverse_probability: float = 0.0
    augmentation: ClipAugmentation | LargeScaleJitter = field(default_factory=ClipAugmentation)
    image_rotation: RandomRotation | None = field(default_factory=RandomRotation)
    class_names: list[str] | None = None
    num_workers: int = 1

    @property
    def used_sources(self) -> list[SourceRecipe]:
        return [source for source in self.train if source.use]


@dataclass
class OptimizerRecipe:
    """AdamW and the gradient clip (published defaults of Mask2Former, VITA and GenVIS).

    backbone_factor: learning rate of the backbone, relative to `learning_rate`.
    max_gradient_norm: L2 norm of all gradients together is clipped to this; None does not clip.
    """

    learning_rate: float
    weight_decay: float = 0.05
    backbone_factor: float = 0.1
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    epsilon: float = 1e-8
    max_gradient_norm: float | None = 0.01


@dataclass
class ScheduleRecipe:
    """Learning rate over the optimiser steps.

    kind: "multi_step" multiplies by `factor` at each of `milestones` (steps); "cosine" falls from 1 to `factor` at
        the last step. warmup_steps: the rate first grows linearly over this many steps (0: no warm-up).
    """

    kind: Literal["multi_step", "cosine"] = "multi_step"
    milestones: list[int] = field(default_factory=list)
    factor: float = 0.1
    warmup_steps: int = 0


@dataclass
class EvaluationRecipe:
    """How the model is tested, during training and at the end; also the saved processor's settings.

    short_side, max_size: frames are resized to this short side, unless the long side would exceed max_size (pixels).
    top_k: tracks kept for each video. clip_length: frames per clip of a semi-online model; None takes the model's.
    """

    short_side: int = 360
    max_size: int = 1333
    top_k: int = 10
    clip_length: int | None = None


@dataclass
class Recipe:
    """A training run.

    system: the `model_type` of a video model, such as "vita" (SPVIS is offline where `model.config` says `refiner`).
    max_steps: optimiser steps.
    batch_size: clips per optimiser step, over all processes and accumulated micro-batches together: the same recipe
        gives the same training on one process or several.
    gradient_accumulation_steps: micro-batches per optimiser step in each process.
    mixed_precision: "no", "bf16", or "fp16", which needs a GPU; the same for all trainings of a process. device: "auto"
        (GPU if there is one) or "cpu".
    seed: of weights, data order, augmentation and sampled points. num_threads: CPU threads of torch in each process.
    checkpoint_every, evaluate_every, log_every: in optimiser steps; 0 never (a model that is complete is always saved
        and evaluated). keep_checkpoints: how many of the last checkpoints stay on disk.
    trackers: Accelerate trackers by name, "jsonl" (a line per logged step in `training_log.jsonl`), or "auto":
        "jsonl", and tensorboard if it is installed.
    output_dir: used where `train` is called without one.
    """

    system: str
    data: DataRecipe
    optimizer: OptimizerRecipe
    max_steps: int
    batch_size: int
    model: ModelRecipe = field(default_factory=ModelRecipe)
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)
    gradient_accumulation_steps: int = 1
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    device: Literal["auto", "cpu"] = "auto"
    seed: int = 0
    num_threads: int | None = None
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    evaluate_every: int = 0
    log_every: int = 20
    trackers: list[str] = field(default_factory=lambda: ["auto"])
    output_dir: str | None = None

    def __post_init__(self):
        check_choice("system", self.system, SYSTEMS)
        for name in ("max_steps", "batch_size", "gradient_accumulation_steps", "keep_checkpoints", "log_every"):
            check_at_least(name, getattr(self, name), 1)
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"`batch_size` ({self.batch_size}) is the total per optimiser step and must be a multiple of "
                f"`gradient_accumulation_steps` ({self.gradient_accumulation_steps})."
            )
        if self.data.num_frames < 1 or not self.data.used_sources:
            raise ValueError("`data.num_frames` must be at least 1 and `data.train` must name a source in use.")
        if any(source.ratio <= 0 for source in self.data.train):
            raise ValueError("every `data.train` source needs a `ratio` above 0; leave out unused sources.")

    @classmethod
    def load(cls, source: "str | Path | Recipe", overrides: typing.Iterable[str] = ()) -> "Recipe":
        """Read a recipe.

        Args:
            source: YAML file, or the name of a recipe that ships with the package (e.g. "vita_moving_shapes").
            overrides: changes such as "max_steps=100" or "data.train.0.json=/data/train.json"; values are YAML.

        Raises:
            FileNotFoundError: neither a file nor a shipped recipe. ValueError: an unknown key (the message gives the
                nearest valid one), a missing key, or a value of the wrong type.
        """
        values = source.to_dict() if isinstance(source, Recipe) else read_yaml(source, RECIPES_DIRECTORY, "recipe")
        for override in overrides:
            apply_override(values, override)
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: dict) -> "Recipe":
        """Build a recipe from nested dictionaries, with the checks of [`Recipe.load`]."""
        try:
            return convert(cls, values, where="")
        except ValueError as error:
            raise ValueError(f"Recipe: {error}") from error

    def to_dict(self) -> dict:
        """Nested dictionaries of what JSON and YAML can hold."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def shipped_recipes() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES_DIRECTORY.glob("*.yaml"))


def describe_shipped(folder: Path) -> dict[str, str]:
    """What the YAML files of a folder are, by name: the first sentence of each, without the reference at its end, and
    of a long one the first clauses."""
    descriptions = {}
    for path in sorted(folder.glob("*.yaml")):
        lines = takewhile(lambda line: line.startswith("# "), path.read_text(encoding="utf-8").splitlines())
        paragraph = " ".join(line.removeprefix("# ") for line in lines)
        sentence = re.split(r"\.(?: |$)", paragraph)[0]
        clauses = re.split("(?<=[,:]) ", re.sub(r" \([^()]*\)$", "", sentence))
        while len(" ".join(clauses)) > 100 and len(clauses) > 1:
            clauses.pop()
        descriptions[path.stem] = " ".join(clauses).rstrip(",:")
    return descriptions


def read_yaml(source: str | Path, shipped: Path, kind: str) -> dict:
    """The mapping in a YAML file, or in the file of this name in the folder `shipped`; `kind` is for messages."""
    path = Path(source)
    if not path.is_file():
        path = shipped / f"{source}.yaml"
    if not path.is_file():
        names = sorted(path.stem for path in shipped.glob("*.yaml"))
        raise FileNotFoundError(f"No {kind} {str(source)!r}: give a YAML file or one of {', '.join(names)}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{kind.capitalize()} {path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{kind.capitalize()} {path} must be a mapping of keys to values, got {type(values).__name__}."
        )
    return values


def merge(values: dict, overrides: dict) -> dict:
    """`values` with `overrides` on top, nested dictionaries key by key."""
    merged = dict(values)
    for key, override in overrides.items():
        both = isinstance(override, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], override) if both else override
    return merged


def apply_override(values: dict, override: str) -> None:
    """Set one "dotted.key=value" in nested dictionaries and lists, in place. Missing mappings are created.

    A single data source is a list of one, whichever way it is written: its number may be given or left out.
    """
    key, separator, text = override.partition("=")
    if not separator:
        raise ValueError(f"Override {override!r} must look like key=value, e.g. optimizer.learning_rate=1e-4.")
    *parents, last = key.strip().split(".")
    node: Any = values
    for position, parent in enumerate(parents):
        if isinstance(node, dict) and parent == "0" and position > 0:
            continue
        node = _open(node, parent, override)
        if isinstance(node, dict) and node.get(parent) is None:
            node[parent] = {}
        node = node[int(parent) if isinstance(node, list) else parent]
        if not isinstance(node, (dict, list)):
            raise ValueError(f"Override {override!r}: {parent!r} holds a value, not further keys.")
    node = _open(node, last, override)
    node[int(last) if isinstance(node, list) else last] = yaml.safe_load(text)


def _open(node: dict | list, key: str, override: str) -> dict | list:
    """The node that `key` is looked up in: of a list of one its only entry, unless the key is a number."""
    if isinstance(node, list) and len(node) == 1 and not key.isdigit():
        return node[0]
    if isinstance(node, list) and not (key.isdigit() and int(key) < len(node)):
        raise ValueError(f"Override {override!r}: {key!r} must be a number from 0 to {len(node) - 1}.")
    return node


def convert(expected: Any, value: Any, where: str) -> Any:
    """Turn plain YAML `value` into type `expected`; `where` is the dotted key for messages."""
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        choices = [argument for argument in arguments if argument is not type(None)]
        if len(choices) > 1:
            fitting = [choice for choice in choices if _fits(choice, value)]
            if not fitting and not isinstance(value, dict):
                kinds = " or ".join(map(_kind, choices))
                raise ValueError(f"`{where}` must be of type {kinds}, got {value!r}.")
            choices = fitting or choices
        return convert(choices[0], value, where)
    if dataclasses.is_dataclass(expected):
        return _convert_dataclass(expected, value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise ValueError(f"`{where}` must be a list of the length of {expected}, got {value!r}.")
        return tuple(convert(arguments[0], entry, f"{where}.{index}") for index, entry in enumerate(value))
    if origin is list:
        if isinstance(value, dict) and dataclasses.is_dataclass(arguments[0]):
            value = [value]  # a single data source needs no list
        if not isinstance(value, list):
            raise ValueError(f"`{where}` must be a list, got {value!r}.")
        return [convert(arguments[0], entry, f"{where}.{index}") for index, entry in enumerate(value)]
    if origin is Literal:
        if value is False and "no" in arguments:
            value = "no"  # YAML reads a bare `no` as False
        check_choice(where, value, arguments)
        return value
    if expected is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 5e-5 as a string
        except ValueError:
            pass
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ValueError(f"`{where}` must be of type {expected.__name__}, got {value!r}.")
    return value


def _kind(choice: type) -> str:
    """What messages call a part of a union."""
    is_literal = typing.get_origin(choice) is Literal
    return " or ".join(map(repr, typing.get_args(choice))) if is_literal else choice.__name__


def _fits(choice: type, value: Any) -> bool:
    """Whether a value is meant for this part of a union: it is of the type, or all its keys are fields, or it is one of
    the values."""
    if typing.get_origin(choice) is Literal:
        return value in typing.get_args(choice)
    if dataclasses.is_dataclass(choice) and isinstance(value, dict):
        return value.keys() <= {entry.name for entry in dataclasses.fields(choice)}
    return isinstance(value, choice)


def _convert_dataclass(expected: type, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(value):
        return value
    place = f"`{where}`" if where else "the top level"
    if not isinstance(value, dict):
        raise ValueError(f"{place} must be a mapping of keys to values, got {value!r}.")
    known = typing.get_type_hints(expected)
    for key in value:
        if key not in known:
            hint = did_you_mean(key, known) or f" The keys are {', '.join(known)}."
            raise ValueError(f"unknown key {key!r} at {place}.{hint}")
    for entry in dataclasses.fields(expected):
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if required and entry.name not in value:
            raise ValueError(f"{place} needs the key {entry.name!r}.")
    prefix = f"{where}." if where else ""
    arguments = {key: convert(known[key], entry, f"{prefix}{key}") for key, entry in value.items()}
    try:
        return expected(**arguments)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
