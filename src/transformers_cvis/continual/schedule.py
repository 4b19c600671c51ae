# SPDX-License-Identifier: Apache-2.0
"""Schedules: everything that a class-incremental training depends on, as nested dataclasses read from one YAML file.

`transformers-cvis train-continual --fields` prints the reference of all fields.
"""

import copy
import dataclasses
import json
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
from ..messages import check_choice
from ..modeling.auto import SYSTEMS
from ..training.recipe import Recipe, SourceSettings
from ..training.settings import apply_override, convert, merge, read_yaml
from .distilling_model import DistillationSettings
from .gradient_projection import GradientProjectionSettings
from .methods import METHODS, Method

SCHEDULES_DIRECTORY = Path(__file__).parent / "schedules"


@dataclass
class ClassesSettings:
    """The classes of each task, and the part of the data that a task may see."""

    split: str | None = field(
        default=None,
        metadata={
            "help": "Number of classes of the base, and of each task after it: 20-2 is a base of 20 classes and 2 more "
            "with every task, until none are left. Give either `split` or `tasks`."
        },
    )
    tasks: list[list[str]] | None = field(
        default=None,
        metadata={"help": "Class names of each task, the base first; classes that are not named are not learnt."},
    )
    order: Literal["categories", "alphabetical", "random"] = field(
        default="categories",
        metadata={
            "help": "Order of the classes that `split` cuts: by their ids in the training json, 'alphabetical', or "
            "'random' by the schedule's seed."
        },
    )
    mode: Literal["overlap", "disjoint", "sequential"] = field(
        default="overlap",
        metadata={
            "help": "Videos and labels of a task, where a video shows classes of several tasks. 'overlap': all videos "
            "with a class of the task, with the labels of that task alone. 'disjoint': of these, the videos without a "
            "class of a later task. 'sequential': the videos of 'disjoint', with the labels of all classes so far."
        },
    )

    def __post_init__(self) -> None:
        if (self.split is None) == (self.tasks is None):
            raise ValueError("give either `split`, for example 20-2, or `tasks`, lists of class names.")
        if self.split is not None and not re.fullmatch(r"[1-9]\d*-[1-9]\d*", self.split):
            raise ValueError(
                f"`split` must look like 20-2 (classes of the base, classes of each task), got {self.split!r}."
            )
        if self.tasks is not None:
            names = [name for task in self.tasks for name in task]
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise ValueError(f"the class {twice[0]!r} is in more than one task, or twice in one.")
            if not self.tasks or not all(self.tasks):
                raise ValueError("every task of `tasks` needs at least one class.")

    def assign(self, categories: Sequence[str], seed: int) -> list[list[str]]:
        """Assign the classes to the tasks.

        Args:
            categories: all class names of the data, by rising category id.
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
                    f"`classes.tasks`: the training data has no class {unknown[0]!r}; it has {list(categories)}."
                )
            return [list(task) for task in self.tasks]
        base, increment = map(int, self.split.split("-"))
        later = len(categories) - base
        if later < 0 or later % increment:
            raise ValueError(
                f"`classes.split`: {self.split} does not divide the {len(categories)} classes of the training data: "
                f"after a base of {base}, {later} are left for tasks of {increment}."
            )
        names = list(categories)
        if self.order == "alphabetical":
            names.sort()
        elif self.order == "random":
            names = np.random.default_rng(seed).permutation(names).tolist()
        return [names[:base], *(names[start : start + increment] for start in range(base, len(names), increment))]


@dataclass
class ReportSettings:
    """How the numbers after every task are counted. A finished run may change all fields but `forgetting_videos`."""

    evaluate_classes: str = field(
        default="all",
        metadata={
            "help": "Classes of the overall numbers: 'all' (CRISP: those to come count 0), those 'seen' so far (HVPL), "
            "or those of the 'current' task."
        },
    )
    forgetting_videos: str = field(
        default="containing",
        metadata={
            "help": "Test videos on which a class is evaluated: those 'containing' an object of it (HVPL), or 'all'."
        },
    )
    undefined: str = field(
        default="exclude",
        metadata={
            "help": "Classes without a first value: 'exclude' leaves them out of HVPL's rate, 'released' counts them "
            "like the released formula."
        },
    )
    num_classes: str = field(
        default="old",
        metadata={"help": "Number of classes by which CRISP's rate is divided: of the 'old' classes, or of 'all'."},
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
    """Where every task is pushed after it was learnt: the base to `main`, task N to the revision `task-N`."""

    repo: str = field(metadata={"help": "Repository of the Hub, NAMESPACE/NAME or NAME; it is made if needed."})
    private: bool | None = field(
        default=None, metadata={"help": "Whether a new repository is private; null takes the Hub's default."}
    )
    license: str = field(default="unknown", metadata={"help": "License on the model cards, e.g. apache-2.0."})


@dataclass
class Schedule:
    """A class-incremental training, task after task.

    `transformers-cvis train-continual --fields` prints the reference of all fields.
    """

    method: str = field(
        metadata={
            "help": "hvpl or crisp; or a method that they are compared with: eclipse, finetune, mib, comformer, pod, "
            "and joint, which learns all classes at once; or one that was added with `register_method`."
        }
    )
    train: list[SourceSettings] = field(
        metadata={
            "help": "Sources to learn from: one, or a list. The first has the classes, further ones need a "
            "`class_mapping`."
        }
    )
    classes: ClassesSettings = field(metadata={"help": "The classes of each task."})
    recipe: dict = field(
        metadata={
            "help": "Training that all tasks have in common: the fields of a recipe (`transformers-cvis train "
            "--fields`) without `system`, `seed`, `output_dir`, `data.train`, `data.valid` and `data.class_names`."
        }
    )
    base: dict = field(
        default_factory=dict,
        metadata={"help": "Changes to `recipe` for the first task; the only place for `model.init_from`."},
    )
    increment: dict = field(
        default_factory=dict,
        metadata={
            "help": "Changes to `recipe` for all tasks after the base. Released code of HVPL trains them on clips of 5 "
            "frames, whatever the base had, which is the length that collecting directions leaves set; "
            "{data: {num_frames: 5}} repeats that."
        },
    )
    tasks: dict = field(
        default_factory=dict,
        metadata={"help": "Changes to `recipe` for single tasks by number, 0 for the base, e.g. {2: {max_steps: 9}}."},
    )
    base_model: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub repository of a base that is learnt already; the first task is then only evaluated. "
            "null trains the base."
        },
    )
    test: SourceSettings | None = field(
        default=None,
        metadata={"help": "Source to evaluate on after every task. Give either `test` or `test_share`."},
    )
    test_share: float | None = field(
        default=None,
        metadata={
            "help": "Share of the videos of the first source to hold out class by class for the evaluation, 0 to 1; "
            "see `split_ytvis`."
        },
    )
    num_prompts: int | Literal["classes"] = field(
        default=10,
        metadata={
            "help": "Queries that a later task adds, at each level; 'classes' is one for each of its classes, as in "
            "CRISP's article. Methods without prompts ignore it."
        },
    )
    calibration_deltas: list[float] | None = field(
        default=None,
        metadata={
            "help": "Calibration of the class logits of each task, see `calibrate_class_logits`; null takes the "
            "model's. Methods without prompts ignore it."
        },
    )
    gradient_projection: GradientProjectionSettings | None = field(
        default=None, metadata={"help": "HVPL's orthogonal gradient correction; null goes without."}
    )
    distillation: dict = field(
        default_factory=dict,
        metadata={"help": "Changes to the losses of a method with distillation, fields of DistillationSettings."},
    )
    report: ReportSettings = field(
        default_factory=ReportSettings, metadata={"help": "How the numbers after every task are counted."}
    )
    push: PushSettings | None = field(
        default=None, metadata={"help": "Where every task is pushed after it was learnt; null does not push."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of everything random, the same in every task."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the run, used if `train_continual` is called without one."}
    )

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        if (self.test is None) == (self.test_share is None):
            raise ValueError("give either `test`, a data set to evaluate on, or `test_share`, for example 0.2.")
        if self.num_prompts != "classes" and self.num_prompts < 1:
            raise ValueError(f'`num_prompts` must be at least 1, or "classes", got {self.num_prompts}.')
        if self.gradient_projection is not None and not self.rules.projects_gradients:
            raise ValueError(f"`gradient_projection` is HVPL's; {self.method} has no use for it.")
        if self.distillation and self.rules.distillation is None:
            raise ValueError(f"`distillation`: {self.method} has none.")
        _ = self.distillation_settings
        for number, overrides in self.tasks.items():
            if not str(number).isdecimal() or not isinstance(overrides, dict):
                raise ValueError(
                    f"`tasks.{number}`: `tasks` says what differs in single tasks, by their numbers, of which 0 is the "
                    f"base, for example {{2: {{max_steps: 100}}}}; got {number!r}: {overrides!r}."
                )
        self.tasks = {int(number): overrides for number, overrides in self.tasks.items()}  # json knows no such keys
        later = {f"tasks.{number}": overrides for number, overrides in self.tasks.items() if number}
        for name, overrides in {"increment": self.increment, **later}.items():
            if (overrides.get("model") or {}).keys() - {"gradient_checkpointing"}:
                raise ValueError(f"`{name}.model`: later tasks go on from the model of the task before.")
        for name, values in {"recipe": self.recipe, "base": self.base, "tasks.0": self.tasks.get(0, {})}.items():
            if "num_prompts" in ((values.get("model") or {}).get("config") or {}):
                raise ValueError(
                    f"`{name}.model.config.num_prompts`: how many prompts its tasks add is a matter of the schedule; "
                    "set its own `num_prompts`."
                )
        for key in ("system", "seed", "output_dir"):
            if key in self.recipe:
                raise ValueError(f"`recipe.{key}`: this belongs to the schedule, not to the recipe of its tasks.")
        data = self.recipe.get("data") or {}
        for key in ("train", "valid", "class_names"):
            if key in data:
                raise ValueError(f"`recipe.data.{key}`: the schedule makes it for every task; name `train` and `test`.")

    @property
    def rules(self) -> Method:
        """The method, by its name."""
        return METHODS[self.method]

    @property
    def distillation_settings(self) -> DistillationSettings | None:
        """Losses of later tasks that compare the model with itself before the task; None without distillation."""
        preset = self.rules.distillation
        if preset is None:
            return None
        return convert(DistillationSettings, {**dataclasses.asdict(preset), **self.distillation}, where="distillation")

    def prompts_of(self, class_names: Sequence[str]) -> int:
        """Return the number of prompts, at each level, of a later task of these classes."""
        if not self.rules.has_prompts:
            return 0
        return len(class_names) if self.num_prompts == "classes" else self.num_prompts

    @classmethod
    def load(cls, source: "str | Path | Schedule", overrides: Iterable[str] = ()) -> "Schedule":
        """Read a schedule.

        Args:
            source: YAML file, or the name of a schedule that ships with the package (e.g. "hvpl_r50_ytvis2019_20-2").
            overrides: changes such as "seed=1" or "recipe.optimizer.learning_rate=1e-4".

        Raises:
            FileNotFoundError: if `source` is neither a file nor a shipped schedule.
            ValueError: if a key is unknown (the message gives the nearest valid one) or missing, or a value is of the
                wrong type.
        """
        values = (
            source.to_dict() if isinstance(source, Schedule) else read_yaml(source, SCHEDULES_DIRECTORY, "schedule")
        )
        for override in overrides:
            apply_override(values, override)
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: dict) -> "Schedule":
        """Build a schedule from nested dictionaries, with the checks of [`Schedule.load`]."""
        try:
            return convert(cls, values, where="")
        except ValueError as error:
            raise ValueError(f"Schedule: {error}") from error

    def to_dict(self) -> dict:
        """Return nested dictionaries that JSON and YAML can hold."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def task_recipe(self, number: int, tasks: Sequence[Sequence[str]], train: Sequence[SourceSettings]) -> Recipe:
        """Build the recipe of one task.

        Args:
            number: number of the task, 0 for the base.
            tasks: class names of all tasks.
            train: sources to learn from that have a class of this task; labels of other tasks are left out here.

        Raises:
            ValueError: if the recipe lacks a key or has an unknown one, or `tasks` has the number of a task that does
                not exist.
        """
        unknown = [other for other in self.tasks if other >= len(tasks)]
        if unknown and not self.rules.learns_all_at_once:
            raise ValueError(
                f"`tasks.{unknown[0]}` is the number of a task that does not exist; they are 0 to {len(tasks) - 1}."
            )
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
        """Return the videos of a source that the mode lets a task see.

        Args:
            number: number of the task, 0 for the base.
            tasks: class names of all tasks.
            videos_of_classes: ids of the videos that each class is in, see `videos_of_classes`.
        """

        def videos_with(names: Iterable[str]) -> set[int]:
            return set().union(*(videos_of_classes.get(name, ()) for name in names))

        videos = videos_with(tasks[number])
        if self.classes.mode == "overlap":
            return videos
        return videos - videos_with(name for names in tasks[number + 1 :] for name in names)

    def _task_source(self, source: SourceSettings, number: int, tasks: Sequence[Sequence[str]]) -> SourceSettings:
        """Restrict a source to the labels and videos that the mode lets a task see."""
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

    Crowds do not count.

    Raises:
        FileNotFoundError: if the annotation file does not exist.
        ValueError: if it is not valid, see `read_annotations`.
    """
    content = read_annotations(source.json, source.kind, source.class_mapping)
    videos = {category["id"]: set() for category in sorted(content["categories"], key=lambda category: category["id"])}
    for annotation in content.get("annotations") or []:
        if not annotation.get("iscrowd"):
            videos[annotation["category_id"]].add(annotation["video_id"])
    names = {category["id"]: category["name"] for category in content["categories"]}
    return {names[category_id]: ids for category_id, ids in videos.items()}


def shipped_schedules() -> list[str]:
    """Return the names of the schedules that ship with the package."""
    return sorted(path.stem for path in SCHEDULES_DIRECTORY.glob("*.yaml"))


def _fields_of_system(config: dict[str, Any], system: str) -> dict[str, Any]:
    """Return `config` without the fields that another system has and this one has not.

    A schedule written for one method, such as CRISP with its text encoder, runs the others by `method=<name>` alone.
    """
    own = {entry.name for entry in dataclasses.fields(SYSTEMS[system])}
    others = {entry.name for config_class in SYSTEMS.values() for entry in dataclasses.fields(config_class)}
    return {name: value for name, value in config.items() if name in own or name not in others}
