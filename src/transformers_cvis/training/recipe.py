# SPDX-License-Identifier: Apache-2.0
"""Recipes: everything that a training run depends on, as nested dataclasses read from one YAML file.

`transformers-cvis train --fields` prints the reference of all fields.
"""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..data import ClassFilter, ClipAugmentation, LargeScaleJitter, RandomRotation
from ..messages import check_at_least, check_choice
from ..modeling.auto import SYSTEMS
from .settings import apply_override, convert, read_yaml

RECIPES_DIRECTORY = Path(__file__).parent / "recipes"


@dataclass
class ModelSettings:
    """The model to train, and the weights that it starts from."""

    init_from: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub repository of a model to start from; null trains from scratch. A Mask2Former or "
            "MinVIS checkpoint gives its frame detector to any system, a VITA checkpoint starts a GenVIS model, an "
            "online SPVIS checkpoint the offline stage."
        },
    )
    revision: str | None = field(
        default=None,
        metadata={"help": "Branch, tag or commit of the Hub repository; null takes its main branch."},
    )
    config: dict = field(
        default_factory=dict,
        metadata={
            "help": "Overrides of the model configuration, nested, e.g. {detector_config: {hidden_dim: 64}}. With "
            "`init_from` they are applied to the configuration of that model."
        },
    )
    gradient_checkpointing: bool = field(
        default=False,
        metadata={"help": "Recompute activations in the backward pass, which saves memory and costs time."},
    )


@dataclass
class SourceSettings:
    """One data set."""

    json: str = field(
        metadata={"help": "Annotation file, in YouTube-VIS format for videos, in COCO format for images."}
    )
    images: str = field(metadata={"help": "Folder that the file names in `json` are relative to."})
    kind: Literal["videos", "images"] = field(
        default="videos",
        metadata={
            "help": "Content of `json`: 'videos', or 'images'. A training clip of an image is copies of it, rotated "
            "one after the other."
        },
    )
    class_mapping: str | dict | None = field(
        default=None,
        metadata={
            "help": "Class names by category name, e.g. {person: human}, or the name of a published mapping of COCO's "
            "categories: ytvis2019, ytvis2021, ytvis2022 or ovis. Categories without an entry are dropped. null takes "
            "categories as classes."
        },
    )
    classes: ClassFilter | None = field(
        default=None,
        metadata={"help": "Classes and videos to leave out, set by schedules to hide other tasks; null hides nothing."},
    )
    ratio: float = field(
        default=1.0,
        metadata={"help": "Relative probability that a training sample comes from this source, if there are several."},
    )
    use: bool = field(default=True, metadata={"help": "Whether the source takes part; false leaves it out."})


@dataclass
class DataSettings:
    """The data that the model is trained and evaluated on."""

    train: list[SourceSettings] = field(metadata={"help": "Sources to train on: one, or a list of them."})
    num_frames: int = field(metadata={"help": "Frames of one training clip."})
    frame_range: int | None = field(
        metadata={
            "help": "Largest distance, in frames, of the frames of a clip from its reference frame; null takes "
            "consecutive frames."
        }
    )
    valid: SourceSettings | None = field(
        default=None, metadata={"help": "Source to evaluate on; null does not evaluate."}
    )
    reverse_probability: float = field(
        default=0.0, metadata={"help": "Share of the training clips that run backwards, 0 to 1."}
    )
    augmentation: ClipAugmentation | LargeScaleJitter = field(
        default_factory=ClipAugmentation,
        metadata={
            "help": "Augmentation of training clips, chosen by its fields: ClipAugmentation, with the defaults of VITA "
            "and GenVIS, or LargeScaleJitter, for pre-training on images."
        },
    )
    image_rotation: RandomRotation | None = field(
        default_factory=RandomRotation,
        metadata={"help": "Rotation of the copies of an image, on top of `augmentation`; null does not rotate."},
    )
    class_names: list[str] | None = field(
        default=None,
        metadata={
            "help": "Class names in label order; null takes those of the first source in `train`, in the order of "
            "their category ids."
        },
    )
    num_workers: int = field(
        default=1,
        metadata={"help": "Processes that prepare batches ahead; 0 prepares them in the training process."},
    )

    @property
    def used_sources(self) -> list[SourceSettings]:
        """Sources to train on, without those that are left out."""
        return [source for source in self.train if source.use]


@dataclass
class OptimizerSettings:
    """AdamW and the gradient clip. The defaults are the published ones of Mask2Former, VITA and GenVIS."""

    learning_rate: float = field(metadata={"help": "Learning rate, before the learning-rate schedule."})
    weight_decay: float = field(
        default=0.05,
        metadata={"help": "Weight decay of all parameters but those of norm layers, embeddings and position tables."},
    )
    backbone_factor: float = field(
        default=0.1, metadata={"help": "Learning rate of the backbone, relative to `learning_rate`."}
    )
    betas: list[float] = field(
        default_factory=lambda: [0.9, 0.999], metadata={"help": "Decay rates of AdamW's two moments, each 0 to 1."}
    )
    epsilon: float = field(
        default=1e-8, metadata={"help": "Term that AdamW adds to the denominator, for numerical stability."}
    )
    max_gradient_norm: float | None = field(
        default=0.01,
        metadata={"help": "L2 norm to which all gradients together are clipped; null does not clip."},
    )


@dataclass
class LearningRateScheduleSettings:
    """Learning rate over the optimiser steps."""

    kind: Literal["multi_step", "cosine"] = field(
        default="multi_step",
        metadata={
            "help": "'multi_step' multiplies the rate by `factor` at each of `milestones`; 'cosine' lets it fall from "
            "1 to `factor` at the last step."
        },
    )
    milestones: list[int] = field(
        default_factory=list, metadata={"help": "Optimiser steps at which 'multi_step' lowers the rate."}
    )
    factor: float = field(
        default=0.1, metadata={"help": "Factor on the rate: of each milestone, or at the end of 'cosine'."}
    )
    warmup_steps: int = field(
        default=0, metadata={"help": "Optimiser steps over which the rate first grows linearly; 0 does not warm up."}
    )


@dataclass
class EvaluationSettings:
    """How the model is tested, during training and at the end; also the settings of the saved processor."""

    short_side: int = field(default=360, metadata={"help": "Short side that frames are resized to, in pixels."})
    max_size: int = field(
        default=1333, metadata={"help": "Limit of the long side in that resize, in pixels; it takes precedence."}
    )
    top_k: int = field(default=10, metadata={"help": "Tracks kept for each video, by score."})
    clip_length: int | None = field(
        default=None, metadata={"help": "Frames per clip of a semi-online model; null takes the model's own number."}
    )


@dataclass
class Recipe:
    """A training run."""

    system: str = field(
        metadata={"help": "Model type of a video model, e.g. vita. SPVIS is offline if `model.config` has `refiner`."}
    )
    data: DataSettings = field(metadata={"help": "Data to train and evaluate on."})
    optimizer: OptimizerSettings = field(metadata={"help": "AdamW and the gradient clip."})
    max_steps: int = field(metadata={"help": "Optimiser steps of the training."})
    batch_size: int = field(
        metadata={
            "help": "Clips per optimiser step, over all processes and accumulated micro-batches together: a recipe "
            "gives the same training on one process or several."
        }
    )
    model: ModelSettings = field(
        default_factory=ModelSettings, metadata={"help": "The model, and the weights that it starts from."}
    )
    learning_rate_schedule: LearningRateScheduleSettings = field(
        default_factory=LearningRateScheduleSettings, metadata={"help": "Learning rate over the optimiser steps."}
    )
    evaluation: EvaluationSettings = field(
        default_factory=EvaluationSettings,
        metadata={"help": "How the model is tested; also the settings of the saved processor."},
    )
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Micro-batches per optimiser step, in each process."}
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = field(
        default="no",
        metadata={
            "help": "Precision of the forward pass: 'no' is float32, 'fp16' needs a GPU. All trainings of a process "
            "have the same."
        },
    )
    device: Literal["auto", "cpu"] = field(default="auto", metadata={"help": "'auto' takes a GPU if there is one."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, data order, augmentation and sampled points."})
    num_threads: int | None = field(
        default=None, metadata={"help": "CPU threads of torch in each process; null leaves torch's own number."}
    )
    checkpoint_every: int = field(
        default=1000,
        metadata={"help": "Optimiser steps between checkpoints; 0 saves one at the end only."},
    )
    keep_checkpoints: int = field(default=2, metadata={"help": "Number of the last checkpoints to keep on disk."})
    evaluate_every: int = field(
        default=0, metadata={"help": "Optimiser steps between evaluations; 0 evaluates at the end only."}
    )
    log_every: int = field(default=20, metadata={"help": "Optimiser steps between log entries."})
    trackers: list[str] = field(
        default_factory=lambda: ["auto"],
        metadata={
            "help": "Accelerate trackers by name; 'jsonl' for a line per log entry in training_log.jsonl; 'auto' for "
            "jsonl, and for tensorboard if it is installed."
        },
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the run, used if `train` is called without one."}
    )

    def __post_init__(self) -> None:
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
    def load(cls, source: "str | Path | Recipe", overrides: Iterable[str] = ()) -> "Recipe":
        """Read a recipe.

        Args:
            source: YAML file, or the name of a recipe that ships with the package (e.g. "vita_moving_shapes").
            overrides: changes such as "max_steps=100" or "data.train.0.json=/data/train.json"; values are YAML.

        Raises:
            FileNotFoundError: if `source` is neither a file nor a shipped recipe.
            ValueError: if a key is unknown (the message gives the nearest valid one) or missing, or a value is of the
                wrong type.
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
        """Return nested dictionaries that JSON and YAML can hold."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES_DIRECTORY.glob("*.yaml"))
