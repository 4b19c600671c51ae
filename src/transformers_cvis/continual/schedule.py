# SPDX-License-Identifier: Apache-2.0
"""Schedules: all settings of a class-incremental training, as nested dataclasses read from one YAML file.

`transformers-cvis train-continual --fields` prints the reference of all fields.
"""

import copy
import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..data import ClassFilter, read_annotations
from ..evaluation.continual_report import EVALUATED_CLASSES, FORGETTING_VIDEOS
from ..evaluation.forgetting import CLASS_COUNTS, UNDEFINED_CHOICES
from ..messages import check_choice, did_you_mean
from ..modeling.auto import SYSTEMS
from ..training.recipe import Recipe, SourceSettings
from ..training.settings import SettingsFile, convert, merge
from .distilling_model import DistillationSettings
from .gradient_projection import GradientProjectionSettings
from .methods import METHODS, Method

SCHEDULES_DIRECTORY = Path(__file__).parent / "schedules"


@dataclass
class ClassesSettings:
    """Classes of each task, and the part of the data that a task may use."""

    split: str | None = field(
        default=None,
        metadata={
            "help": "Number of classes of the base and of each later task, e.g. 20-2: a base of 20 classes, then 2 "
            "per task until none are left; null uses `tasks`."
        },
    )
    tasks: list[list[str]] | None = field(
        default=None,
        metadata={
            "help": "Class names of each task, the base first; classes that are not named are not learnt. null uses "
            "`split`."
        },
    )
    order: Literal["categories", "alphabetical", "random"] = field(
        default="categories",
        metadata={
            "help": "Order of the classes for `split`: 'categories' by their ids in the training data, 'alphabetical', "
            "or 'random' with the seed of the schedule."
        },
    )
    mode: Literal["overlap", "disjoint", "sequential"] = field(
        default="overlap",
        metadata={
            "help": "Videos and labels of a task, if videos show classes of several tasks. 'overlap' uses all videos "
            "with a class of the task, and only the labels of these classes. 'disjoint' drops the videos that show a "
            "class of a later task. 'sequential' uses the videos of 'disjoint' and the labels of all classes so far."
        },
    )

    def __post_init__(self) -> None:
        if (self.split is None) == (self.tasks is None):
            raise ValueError("give either `split`, for example 20-2, or `tasks`, lists of class names, not both.")
        if self.split is not None and not re.fullmatch(r"[1-9]\d*-[1-9]\d*", self.split):
            raise ValueError(
                f"`split` must look like 20-2 (classes of the base, classes of each task), got {self.split!r}."
            )
        if self.tasks is not None:
            names = [name for task in self.tasks for name in task]
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise ValueError(f"`tasks` must name every class once, got {twice[0]!r} more than once.")
            if not self.tasks or not all(self.tasks):
                raise ValueError("`tasks` must have at least one task, and every task at least one class.")

    def assign(self, categories: Sequence[str], seed: int) -> list[list[str]]:
        """Assign the classes to the tasks.

        Args:
            categories: all class names of the data, ordered by category id.
            seed: seed of the order "random".

        Returns:
            Class names of every task, the base first.

        Raises:
            ValueError: if the data lacks a class, or the split does not divide the classes evenly.
        """
        if self.tasks is not None:
            unknown = [name for task in self.tasks for name in task if name not in categories]
            if unknown:
                raise ValueError(
                    f"`classes.tasks`: {unknown[0]!r} is not a class of the training data, which has "
                    f"{', '.join(categories)}.{did_you_mean(unknown[0], categories)}"
                )
            return [list(task) for task in self.tasks]
        base, increment = map(int, str(self.split).split("-"))
        later = len(categories) - base
        if later < 0 or later % increment:
            raise ValueError(
                f"`classes.split`: {self.split} does not divide the {len(categories)} classes of the training data "
                f"evenly: after a base of {base}, {later} are left for tasks of {increment}."
            )
        names = list(categories)
        if self.order == "alphabetical":
            names.sort()
        elif self.order == "random":
            names = np.random.default_rng(seed).permutation(names).tolist()
        return [names[:base], *(names[start : start + increment] for start in range(base, len(names), increment))]


@dataclass
class ReportSettings:
    """Definition of the metrics after every task. A finished run may change all fields except `forgetting_videos`."""

    evaluate_classes: str = field(
        default="all",
        metadata={
            "help": "Classes over which the overall metrics are averaged: 'all' (CRISP; classes of later tasks count "
            "as 0), 'seen' so far (HVPL), or of the 'current' task."
        },
    )
    forgetting_videos: str = field(
        default="containing",
        metadata={
            "help": "Test videos on which a single class or task is evaluated: 'containing' an object of it (HVPL), "
            "or 'all'."
        },
    )
    undefined: str = field(
        default="exclude",
        metadata={
            "help": "Classes whose first metric is 0 or undefined: 'exclude' leaves them out of the forgetting rate of "
            "HVPL, 'released' counts them like the released code."
        },
    )
    num_classes: str = field(
        default="old",
        metadata={
            "help": "Number of classes by which the forgetting rate of CRISP is divided: of the 'old' classes, or of "
            "'all'."
        },
    )

    def __post_init__(self) -> None:
        for name, choices in (
            ("evaluate_classes", EVALUATED_CLASSES),
            ("forgetting_videos", FORGETTING_VIDEOS),
            ("undefined", UNDEFINED_CHOICES),
            ("num_classes", CLASS_COUNTS),
        ):
            check_choice(name, getattr(self, name), choices)


@dataclass
class PushSettings:
    """Push of every learnt task to the Hub: the base to `main`, task N to the revision `task-N`."""

    repo: str = field(metadata={"help": "Hub repository, NAMESPACE/NAME or NAME; it is created if needed."})
    private: bool | None = field(
        default=None, metadata={"help": "Make a new repository private; null uses the default of the Hub."}
    )
    license: str = field(default="unknown", metadata={"help": "License on the model cards, e.g. apache-2.0."})


@dataclass
class Schedule(SettingsFile):
    """All settings of a class-incremental training.

    `transformers-cvis train-continual --fields` prints the reference of all fields.
    """

    file_kind = "schedule"
    shipped_files = SCHEDULES_DIRECTORY

    method: str = field(
        metadata={
            "help": "Method: hvpl, crisp, eclipse, finetune, mib, comformer, pod, joint (which learns all classes at "
            "once), or one added with `register_method`."
        }
    )
    train: list[SourceSettings] = field(
        metadata={
            "help": "Training data: one source or a list of sources. The first defines the classes; further ones need "
            "a `class_mapping`."
        }
    )
    classes: ClassesSettings = field(metadata={"help": "Classes of each task."})
    recipe: dict = field(
        metadata={
            "help": "Recipe of all tasks: the fields of `transformers-cvis train --fields` without `system`, `seed`, "
            "`output_dir`, `data.train`, `data.valid` and `data.class_names`."
        }
    )
    base: dict = field(
        default_factory=dict,
        metadata={"help": "Changes to `recipe` for the first task; the only place for `model.init_from`."},
    )
    increment: dict = field(
        default_factory=dict,
        metadata={
            "help": "Changes to `recipe` for all tasks after the base. The released code of HVPL trains them on clips "
            "of 5 frames, a length that its collection of directions leaves set; use {data: {num_frames: 5}} for that."
        },
    )
    tasks: dict = field(
        default_factory=dict,
        metadata={"help": "Changes to `recipe` for single tasks by number, 0 for the base, e.g. {2: {max_steps: 9}}."},
    )
    base_model: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub repository of a trained base, whose task is then only evaluated; null trains the "
            "base."
        },
    )
    test: SourceSettings | None = field(
        default=None,
        metadata={"help": "Source to evaluate on after every task; null uses `test_share`."},
    )
    test_share: float | None = field(
        default=None,
        metadata={
            "help": "Share of the videos of each class in the first source to hold out for the evaluation, 0 to 1; "
            "null uses `test`."
        },
    )
    num_prompts: int | Literal["classes"] = field(
        default=10,
        metadata={
            "help": "Number of queries that a later task adds in each stage; 'classes' adds one per class of the task, "
            "like the CRISP paper. Methods without prompts ignore it."
        },
    )
    calibration_deltas: list[float] | None = field(
        default=None,
        metadata={
            "help": "Calibration of the class logits of each task, see `calibrate_class_logits`; null uses the "
            "model configuration. Methods without prompts ignore it."
        },
    )
    gradient_projection: GradientProjectionSettings | None = field(
        default=None, metadata={"help": "HVPL's orthogonal gradient correction; null trains without it."}
    )
    distillation: dict = field(
        default_factory=dict,
        metadata={"help": "Changes to the losses of a method with distillation: fields of DistillationSettings."},
    )
    report: ReportSettings = field(
        default_factory=ReportSettings, metadata={"help": "Definition of the metrics after every task."}
    )
    push: PushSettings | None = field(
        default=None, metadata={"help": "Hub repository to which every learnt task is pushed; null does not push."}
    )
    seed: int = field(
        default=0, metadata={"help": "Random seed of every task, of the class order and of the split of the data."}
    )
    output_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of the run; null requires the argument `output_dir` of `train_continual`."},
    )

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        if (self.test is None) == (self.test_share is None):
            raise ValueError("give either `test`, a source to evaluate on, or `test_share`, for example 0.2, not both.")
        if self.num_prompts != "classes" and self.num_prompts < 1:
            raise ValueError(f"`num_prompts` must be at least 1 or 'classes', got {self.num_prompts}.")
        if self.gradient_projection is not None and not self.rules.projects_gradients:
            raise ValueError(f"`gradient_projection`: {self.method} does not use it; remove it or set null.")
        if self.distillation and self.rules.distillation is None:
            raise ValueError(f"`distillation`: {self.method} does not use it; remove it.")
        _ = self.distillation_settings
        for number, overrides in self.tasks.items():
            if not str(number).isdecimal() or not isinstance(overrides, dict):
                raise ValueError(
                    f"`tasks.{number}`: `tasks` must map numbers of tasks (0 is the base) to changes, for example "
                    f"{{2: {{max_steps: 100}}}}, got {number!r}: {overrides!r}."
                )
        self.tasks = {int(number): overrides for number, overrides in self.tasks.items()}  # JSON keys are strings
        later = {f"tasks.{number}": overrides for number, overrides in self.tasks.items() if number}
        for name, overrides in {"increment": self.increment, **later}.items():
            if (overrides.get("model") or {}).keys() - {"gradient_checkpointing"}:
                raise ValueError(
                    f"`{name}.model`: later tasks continue with the model of the previous task, so only "
                    "`gradient_checkpointing` can change."
                )
        for name, values in {"recipe": self.recipe, "base": self.base, "tasks.0": self.tasks.get(0, {})}.items():
            if "num_prompts" in ((values.get("model") or {}).get("config") or {}):
                raise ValueError(
                    f"`{name}.model.config.num_prompts`: the number of prompts belongs to the schedule; set its own "
                    "`num_prompts`."
                )
        for key in ("system", "seed", "output_dir"):
            if key in self.recipe:
                raise ValueError(f"`recipe.{key}`: this key belongs to the schedule, not to the recipe of its tasks.")
        data = self.recipe.get("data") or {}
        for key in ("train", "valid", "class_names"):
            if key in data:
                raise ValueError(
                    f"`recipe.data.{key}`: the schedule sets this key for every task; give `train` and `test` of the "
                    "schedule."
                )

    @property
    def rules(self) -> Method:
        """Definition of `method`."""
        return METHODS[self.method]

    @property
    def distillation_settings(self) -> DistillationSettings | None:
        """Distillation losses of the tasks after the base; None for a method without distillation."""
        preset = self.rules.distillation
        if preset is None:
            return None
        return convert(DistillationSettings, {**dataclasses.asdict(preset), **self.distillation}, where="distillation")

    def prompts_of(self, class_names: Sequence[str]) -> int:
        """Return the number of prompts, per stage, of a later task with these classes."""
        if not self.rules.has_prompts:
            return 0
        return len(class_names) if self.num_prompts == "classes" else self.num_prompts

    def task_recipe(self, number: int, tasks: Sequence[Sequence[str]], train: Sequence[SourceSettings]) -> Recipe:
        """Build the recipe of one task.

        Args:
            number: number of the task, 0 for the base.
            tasks: class names of all tasks.
            train: training sources that have a class of this task; this method restricts their labels to the task.

        Raises:
            ValueError: if a key of the recipe is unknown or missing, or a number in `tasks` is not that of a task.
        """
        unknown = [other for other in self.tasks if other >= len(tasks)]
        if unknown and not self.rules.learns_all_at_once:
            raise ValueError(f"`tasks.{unknown[0]}` is not the number of a task; the tasks are 0 to {len(tasks) - 1}.")
        values = merge(self.recipe, self.increment if number else self.base)
        values = merge(values, self.tasks.get(number, {}))
        values = copy.deepcopy(values)
        seen = [name for task in tasks[: number + 1] for name in task]
        data = values.setdefault("data", {})
        data["class_names"] = seen
        sources = [self._task_source(source, number, tasks) for source in train if source.use]
        data["train"] = [dataclasses.asdict(source) for source in sources]
        values["system"], values["seed"] = self.rules.system, self.seed
        model = values.setdefault("model", {})
        model["config"] = _fields_of_system(merge(self.rules.config, model.get("config") or {}), self.rules.system)
        if self.calibration_deltas is not None and self.rules.has_prompts:
            model["config"]["calibration_deltas"] = self.calibration_deltas
        try:
            return Recipe.from_dict(values)
        except ValueError as error:
            raise ValueError(f"task {number} of the schedule: {error}") from error

    def videos_of_task(
        self, number: int, tasks: Sequence[Sequence[str]], videos_of_classes: Mapping[str, set[int]]
    ) -> set[int]:
        """Return the ids of the videos of a source that a task may use under `classes.mode`.

        Args:
            number: number of the task, 0 for the base.
            tasks: class names of all tasks.
            videos_of_classes: ids of the videos that show each class, from the function `videos_of_classes`.
        """

        def videos_with(names: Iterable[str]) -> set[int]:
            return set().union(*(videos_of_classes.get(name, ()) for name in names))

        videos = videos_with(tasks[number])
        if self.classes.mode == "overlap":
            return videos
        return videos - videos_with(name for names in tasks[number + 1 :] for name in names)

    def _task_source(self, source: SourceSettings, number: int, tasks: Sequence[Sequence[str]]) -> SourceSettings:
        """Restrict a source to the labels and videos that a task may use under `classes.mode`."""
        seen = [name for names in tasks[: number + 1] for name in names]
        later = [name for names in tasks[number + 1 :] for name in names]
        mode = self.classes.mode
        return dataclasses.replace(
            source,
            classes=ClassFilter(
                keep=tuple(seen if mode == "sequential" else tasks[number]),
                require=tuple(tasks[number]),
                exclude=() if mode == "overlap" else tuple(later),
            ),
        )


def videos_of_classes(source: SourceSettings) -> dict[str, set[int]]:
    """Map each class of a source to the ids of the videos that show it, ordered by category id.

    Crowd annotations are ignored.

    Raises:
        FileNotFoundError: if the annotation file does not exist.
        ValueError: if the file is not valid, see `read_annotations`.
    """
    content = read_annotations(source.json, source.kind, source.class_mapping)
    videos: dict[int, set[int]] = {
        category["id"]: set() for category in sorted(content["categories"], key=lambda category: category["id"])
    }
    for annotation in content.get("annotations") or []:
        if not annotation.get("iscrowd"):
            videos[annotation["category_id"]].add(annotation["video_id"])
    names = {category["id"]: category["name"] for category in content["categories"]}
    return {names[category_id]: ids for category_id, ids in videos.items()}


def shipped_schedules() -> list[str]:
    """Return the names of the schedules that ship with the package."""
    return sorted(path.stem for path in SCHEDULES_DIRECTORY.glob("*.yaml"))


def _fields_of_system(config: dict[str, Any], system: str) -> dict[str, Any]:
    """Return `config` without the fields that only other systems have.

    Thus a schedule written for one method, such as CRISP with its text encoder, runs another with `method=<name>`.
    """
    own = {entry.name for entry in dataclasses.fields(SYSTEMS[system])}
    others = {entry.name for config_class in SYSTEMS.values() for entry in dataclasses.fields(config_class)}
    return {name: value for name, value in config.items() if name in own or name not in others}
