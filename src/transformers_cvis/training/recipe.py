# SPDX-License-Identifier: Apache-2.0
"""Recipes: all settings of a training run, as nested dataclasses read from one YAML file.

`transformers-cvis train --fields` prints the reference of all fields.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..data import ClassFilter, ClipAugmentation, LargeScaleJitter, RandomRotation
from ..messages import check_at_least, check_choice
from ..modeling.auto import SYSTEMS
from .settings import SettingsFile

RECIPES_DIRECTORY = Path(__file__).parent / "recipes"


@dataclass
class ModelSettings:
    """The model to train and its initial weights."""

    init_from: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub repository of a model to start from; null starts from random weights. Mask2Former "
            "and MinVIS checkpoints provide the frame detector of any system, a VITA checkpoint starts GenVIS or HVPL, "
            "an online SPVIS checkpoint starts the offline stage."
        },
    )
    revision: str | None = field(
        default=None,
        metadata={"help": "Branch, tag or commit of the Hub repository; null uses the main branch."},
    )
    config: dict = field(
        default_factory=dict,
        metadata={
            "help": "Fields of the model configuration to change, e.g. {detector_config: {hidden_dim: 64}}; with "
            "`init_from`, changes to the configuration of that model."
        },
    )
    gradient_checkpointing: bool = field(
        default=False,
        metadata={"help": "Recompute activations in the backward pass: less memory, more time."},
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
        metadata={"help": "Content of `json`. With 'images', a training clip consists of rotated copies of one image."},
    )
    class_mapping: str | dict | None = field(
        default=None,
        metadata={
            "help": "Map from category names to class names, e.g. {person: human}, or the name of a published mapping "
            "of COCO categories: ytvis2019, ytvis2021, ytvis2022 or ovis. Categories without an entry are dropped; "
            "null keeps the category names."
        },
    )
    classes: ClassFilter | None = field(
        default=None,
        metadata={"help": "Filter of classes and videos, which schedules set to hide other tasks; null hides nothing."},
    )
    ratio: float = field(
        default=1.0,
        metadata={"help": "Relative probability that a training sample is drawn from this source, above 0."},
    )
    use: bool = field(default=True, metadata={"help": "Use the source; false leaves it out."})


@dataclass
class DataSettings:
    """Data for training and evaluation."""

    train: list[SourceSettings] = field(metadata={"help": "Training data: one source or a list of sources."})
    num_frames: int = field(metadata={"help": "Number of frames of a training clip."})
    frame_range: int | None = field(
        metadata={
            "help": "Largest distance, in frames, between the reference frame of a clip and its other frames; null "
            "uses consecutive frames."
        }
    )
    valid: SourceSettings | None = field(default=None, metadata={"help": "Evaluation data; null skips the evaluation."})
    reverse_probability: float = field(
        default=0.0, metadata={"help": "Probability that a training clip is reversed in time, 0 to 1."}
    )
    augmentation: ClipAugmentation | LargeScaleJitter = field(
        default_factory=ClipAugmentation,
        metadata={
            "help": "Augmentation of training clips; its fields select ClipAugmentation (defaults of VITA and GenVIS) "
            "or LargeScaleJitter (pre-training on images)."
        },
    )
    image_rotation: RandomRotation | None = field(
        default_factory=RandomRotation,
        metadata={"help": "Rotation of the copies of an image, in addition to `augmentation`; null does not rotate."},
    )
    class_names: list[str] | None = field(
        default=None,
        metadata={
            "help": "Class names in label order; null uses those of the first source in `train`, by category id."
        },
    )
    num_workers: int = field(
        default=1,
        metadata={"help": "Worker processes that prepare batches; 0 prepares them in the training process."},
    )

    @property
    def used_sources(self) -> list[SourceSettings]:
        """Sources of `train` that are in use."""
        return [source for source in self.train if source.use]


@dataclass
class OptimizerSettings:
    """AdamW and gradient clipping, with the published defaults of Mask2Former, VITA and GenVIS."""

    learning_rate: float = field(metadata={"help": "Peak learning rate, which `learning_rate_schedule` scales."})
    weight_decay: float = field(
        default=0.05,
        metadata={"help": "Weight decay of all parameters except norm layers, embeddings and position tables."},
    )
    backbone_factor: float = field(default=0.1, metadata={"help": "Factor on `learning_rate` for the backbone."})
    betas: list[float] = field(
        default_factory=lambda: [0.9, 0.999], metadata={"help": "Decay rates of the two moments of AdamW, each 0 to 1."}
    )
    epsilon: float = field(
        default=1e-8, metadata={"help": "Term added to the denominator of AdamW for numerical stability."}
    )
    max_gradient_norm: float | None = field(
        default=0.01,
        metadata={"help": "Largest L2 norm of all gradients together; null does not clip."},
    )


@dataclass
class LearningRateScheduleSettings:
    """Course of the learning rate over the optimiser steps."""

    kind: Literal["multi_step", "cosine"] = field(
        default="multi_step",
        metadata={
            "help": "'multi_step' multiplies the learning rate by `factor` at each of `milestones`; 'cosine' lowers "
            "it along a cosine, to `factor` times the peak at the last step."
        },
    )
    milestones: list[int] = field(
        default_factory=list,
        metadata={"help": "Optimiser steps after which 'multi_step' multiplies the rate by `factor` once more."},
    )
    factor: float = field(
        default=0.1, metadata={"help": "Factor on the learning rate at each milestone, or at the end of 'cosine'."}
    )
    warmup_steps: int = field(default=0, metadata={"help": "Optimiser steps of linear warm-up; 0 does not warm up."})


@dataclass
class EvaluationSettings:
    """Settings of every evaluation, also saved in the video processor."""

    short_side: int = field(default=360, metadata={"help": "Short side to which frames are resized, in pixels."})
    max_size: int = field(
        default=1333,
        metadata={"help": "Largest long side of resized frames, in pixels; overrides `short_side`."},
    )
    top_k: int = field(default=10, metadata={"help": "Number of tracks to keep per video, the best by score."})
    clip_length: int | None = field(
        default=None,
        metadata={"help": "Frames per clip of a semi-online model; null uses its configuration."},
    )


@dataclass
class Recipe(SettingsFile):
    """All settings of a training run."""

    file_kind = "recipe"
    shipped_files = RECIPES_DIRECTORY

    system: str = field(metadata={"help": "Model type, e.g. vita. SPVIS is offline if `model.config` sets `refiner`."})
    data: DataSettings = field(metadata={"help": "Data for training and evaluation."})
    optimizer: OptimizerSettings = field(metadata={"help": "AdamW and gradient clipping."})
    max_steps: int = field(metadata={"help": "Number of optimiser steps."})
    batch_size: int = field(
        metadata={
            "help": "Clips per optimiser step, summed over all processes and micro-batches, so that a recipe gives "
            "the same training on one process or several."
        }
    )
    model: ModelSettings = field(default_factory=ModelSettings, metadata={"help": "The model and its initial weights."})
    learning_rate_schedule: LearningRateScheduleSettings = field(
        default_factory=LearningRateScheduleSettings,
        metadata={"help": "Factor on the learning rate in each optimiser step."},
    )
    evaluation: EvaluationSettings = field(
        default_factory=EvaluationSettings,
        metadata={"help": "Settings of every evaluation, also saved in the video processor."},
    )
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Micro-batches per optimiser step in each process."}
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = field(
        default="no",
        metadata={
            "help": "Precision of the forward pass: 'no' is float32, 'fp16' needs a GPU. All trainings in one process "
            "must use the same."
        },
    )
    device: Literal["auto", "cpu"] = field(default="auto", metadata={"help": "'auto' uses a GPU if torch finds one."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, data order, augmentation and sampled points."})
    num_threads: int | None = field(
        default=None, metadata={"help": "CPU threads of torch in each process; null keeps the default of torch."}
    )
    checkpoint_every: int = field(
        default=1000,
        metadata={"help": "Optimiser steps between checkpoints; 0 saves only at the end."},
    )
    keep_checkpoints: int = field(default=2, metadata={"help": "Number of recent checkpoints to keep on disk."})
    evaluate_every: int = field(
        default=0, metadata={"help": "Optimiser steps between evaluations; 0 evaluates only at the end."}
    )
    log_every: int = field(default=20, metadata={"help": "Optimiser steps between log entries."})
    trackers: list[str] = field(
        default_factory=lambda: ["auto"],
        metadata={
            "help": "Names of Accelerate trackers. 'jsonl' writes a line per log entry to training_log.jsonl; 'auto' "
            "selects jsonl, and tensorboard if it is installed."
        },
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the run; null requires the argument `output_dir` of `train`."}
    )

    def __post_init__(self) -> None:
        check_choice("system", self.system, SYSTEMS)
        for name in ("max_steps", "batch_size", "gradient_accumulation_steps", "keep_checkpoints", "log_every"):
            check_at_least(name, getattr(self, name), 1)
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                "`batch_size` is the total per optimiser step and must be a multiple of "
                f"`gradient_accumulation_steps` ({self.gradient_accumulation_steps}), got {self.batch_size}."
            )
        check_at_least("data.num_frames", self.data.num_frames, 1)
        if not self.data.used_sources:
            raise ValueError("`data.train` must have at least one source with `use: true`.")
        for number, source in enumerate(self.data.train):
            if source.ratio <= 0:
                raise ValueError(
                    f"`data.train.{number}.ratio` must be above 0, got {source.ratio}. To leave a source out, set "
                    "`use: false`."
                )


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES_DIRECTORY.glob("*.yaml"))
