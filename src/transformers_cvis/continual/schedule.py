"""Schedules: everything that a class-incremental training depends on, as nested dataclasses read from one YAML file."""

import copy
import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from ..data import ClassFilter, read_annotations
from ..evaluation.continual_report import EVALUATED_CLASSES, FORGETTING_VIDEOS
from ..evaluation.forgetting import CLASS_COUNTS, UNDEFINED_CHOICES
from ..training.recipe import Recipe, SourceRecipe, apply_override, convert, merge, read_yaml
from .distillation import DistillationRecipe
from .methods import METHODS, Method

SCHEDULES_DIRECTORY = Path(__file__).parent / "schedules"


@dataclass
class ClassesRecipe:
    """Which classes are learnt when.

    split: "20-2" is a base of 20 classes and 2 more with every task, until there are none left. tasks: instead of it,
        the names of the classes of each task, the base first; classes that are not named are not learnt.
    order: of the classes that `split` cuts: "categories" by their ids in the training json, "alphabetical", or "random"
        by the schedule's seed.
    mode: what a task may see, where a video shows classes of several tasks. "overlap": all videos with a class of the
        task, with the labels of that task alone. "disjoint": of these, videos without a class of a later task.
        "sequential": these too, with the labels of all classes so far.
    """

    split: str | None = None
    tasks: list[list[str]] | None = None
    order: Literal["categories", "alphabetical", "random"] = "categories"
    mode: Literal["overlap", "disjoint", "sequential"] = "overlap"

    def __post_init__(self):
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
        """The classes of every task.

        Args:
            categories: all that the data has, by rising id.
            seed: of the order "random".

        Raises:
            ValueError: a class that the data does not have, or a split that does not come out even.
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
class ProjectionRecipe:
    """Orthogonal gradient correction: later frame prompts keep clear of the directions that earlier tasks use (HVPL).

    space: "features" takes directions of the channels of the features. "released" repeats the computation of the
        released code, whose directions are those of the first 256 frames and apply to channels only because there are
        256 of these, too. The frames differ: the released code goes through the data of a task, in clips of 4 frames,
        when the next one begins; here this happens at the end of the task, with the same model, in clips as long as the
        task's own. So nothing of older tasks has to be kept.
    threshold: share of the features' energy that the directions of a task hold.
    num_clips: training clips of a task whose features are collected, at most (256 in released code); "released" stops
        at 256 frames.
    centre: subtract the mean feature first; "released" always does.
    project_update: also restrict what the optimiser makes of the gradients, since Adam scales every entry by itself.
        False, as released, corrects gradients only.
    """

    space: Literal["features", "released"] = "features"
    threshold: float = 0.7
    num_clips: int = 256
    centre: bool = False
    project_update: bool = True

    def __post_init__(self):
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"`threshold` is a share of the energy in 0..1, got {self.threshold}.")
        if self.num_clips < 1:
            raise ValueError(f"`num_clips` must be at least 1, got {self.num_clips}.")


@dataclass
class ReportRecipe:
    """How the numbers after every task are counted.

    evaluate_classes: overall numbers over "all" classes (CRISP: those to come count 0), those "seen" so far (HVPL), or
        those of the "current" task. forgetting_videos: a class is evaluated on the test videos "containing" it (HVPL)
        or on "all". undefined: classes without a first value are "exclude"d from HVPL's rate, or counted as the
        "released" formula does. num_classes: CRISP's rate is divided by the number of "old" classes or of "all". All
        but `forgetting_videos` can be changed for a run that is finished.
    """

    evaluate_classes: str = "all"
    forgetting_videos: str = "containing"
    undefined: str = "exclude"
    num_classes: str = "old"

    def __post_init__(self):
        for name, choices in (
            ("evaluate_classes", EVALUATED_CLASSES),
            ("forgetting_videos", FORGETTING_VIDEOS),
            ("undefined", UNDEFINED_CHOICES),
            ("num_classes", CLASS_COUNTS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(map(repr, choices))}, got {getattr(self, name)!r}."
                )


@dataclass
class PushRecipe:
    """Where every task is pushed after it was learnt: the base to `main` of `repo`, task N to the revision `task-N`."""

    repo: str
    private: bool | None = None
    license: str = "unknown"


@dataclass
class Schedule:
    """A class-incremental training.

    method: "hvpl", "crisp", or what they are compared with: "eclipse", "finetune", "mib", "comformer", "pod", and
        "joint", which learns all classes at once.
    train: data to learn from, one source or a list; the first has the classes, further ones need a `class_mapping`.
    test: data to evaluate on after every task; or test_share: instead of it, this share of the videos of the first
        source, held out class by class (see `split_ytvis`).
    classes: the classes of every task.
    recipe: what all tasks have in common, as in a [`Recipe`] without `system`, `seed`, `data.train`, `data.valid` and
        `data.class_names`. base, increment: what differs in the first task and in all later ones; tasks: in single
        ones, by number, 0 for the base. `model.init_from` is for the base alone. Released code of HVPL trains all
        later tasks on clips of 5 frames, whatever the base had: the length that collecting directions leaves behind.
        `increment.data.num_frames: 5` repeats that.
    base_model: folder or Hub repository of a base that is learnt already; the first task is then only evaluated.
    num_prompts: queries that a later task adds, at each level; "classes" is one for each of its classes, as in CRISP's
        article. calibration_deltas: of each task, see `calibrate_class_logits`. Methods without prompts have no use for
        them.
    gradient_projection: HVPL's correction; null for none. distillation: fields of [`DistillationRecipe`] that differ
        from those of a method which has it.
    seed: of everything random, in every task.
    """

    method: str
    train: list[SourceRecipe]
    classes: ClassesRecipe
    recipe: dict
    base: dict = field(default_factory=dict)
    increment: dict = field(default_factory=dict)
    tasks: dict = field(default_factory=dict)
    base_model: str | None = None
    test: SourceRecipe | None = None
    test_share: float | None = None
    num_prompts: int | Literal["classes"] = 10
    calibration_deltas: list[float] | None = None
    gradient_projection: ProjectionRecipe | None = None
    distillation: dict = field(default_factory=dict)
    report: ReportRecipe = field(default_factory=ReportRecipe)
    push: PushRecipe | None = None
    seed: int = 0
    output_dir: str | None = None

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"`method` must be one of {', '.join(map(repr, METHODS))}, got {self.method!r}.")
        if (self.test is None) == (self.test_share is None):
            raise ValueError("give either `test`, a data set to evaluate on, or `test_share`, for example 0.2.")
        if self.num_prompts != "classes" and self.num_prompts < 1:
            raise ValueError(f'`num_prompts` must be at least 1, or "classes", got {self.num_prompts}.')
        if self.gradient_projection is not None and not self.rules.projects_gradients:
            raise ValueError(f"`gradient_projection` is HVPL's; {self.method} has no use for it.")
        if self.distillation and self.rules.distillation is None:
            raise ValueError(f"`distillation`: {self.method} has none.")
        _ = self.distillation_recipe
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
        return METHODS[self.method]

    @property
    def distillation_recipe(self) -> DistillationRecipe | None:
        """The losses of later tasks that look at the model before."""
        preset = self.rules.distillation
        if preset is None:
            return None
        return convert(DistillationRecipe, {**dataclasses.asdict(preset), **self.distillation}, where="distillation")

    def prompts_of(self, class_names: Sequence[str]) -> int:
        """Prompts, at each level, of a later task of these classes."""
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
            FileNotFoundError: neither a file nor a shipped schedule. ValueError: an unknown key (the message gives the
                nearest valid one), a missing key, or a value of the wrong type.
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
        """Nested dictionaries of what JSON and YAML can hold."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def task_recipe(self, number: int, tasks: Sequence[Sequence[str]], train: Sequence[SourceRecipe]) -> Recipe:
        """The training of one task.

        Args:
            tasks: classes of all tasks.
            train: the sources to learn from that have a class of this task; labels of other tasks are left out here.

        Raises:
            ValueError: the recipe is not complete, or has a key that is none; or the schedule says something of a task
                that there is not.
        """
        beyond = [other for other in self.tasks if other >= len(tasks)]
        if beyond and not self.rules.learns_all_at_once:
            raise ValueError(f"`tasks.{beyond[0]}`: there is no such task; they are 0 to {len(tasks) - 1}.")
        values = merge(self.recipe, self.increment if number else self.base)
        values = merge(values, self.tasks.get(number, {}))
        values = copy.deepcopy(values)
        seen = [name for task in tasks[: number + 1] for name in task]
        data = values.setdefault("data", {})
        data["class_names"] = seen
        data["train"] = [self._task_source(source, number, tasks) for source in train if source.use]
        values["system"], values["seed"] = self.rules.system, self.seed
        model = values.setdefault("model", {})
        model["config"] = merge(self.rules.config, model.get("config") or {})
        if self.calibration_deltas is not None and self.rules.has_prompts:
            model["config"]["calibration_deltas"] = self.calibration_deltas
        where = f"task {number} of the schedule"
        try:
            return Recipe.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def videos_of_task(
        self, number: int, tasks: Sequence[Sequence[str]], videos_of_classes: Mapping[str, set[int]]
    ) -> set[int]:
        """Of a source, given the videos that each class is in, those that the mode lets a task see."""

        def showing(names: Iterable[str]) -> set[int]:
            return set().union(*(videos_of_classes.get(name, ()) for name in names))

        videos = showing(tasks[number])
        if self.classes.mode == "overlap":
            return videos
        return videos - showing(name for names in tasks[number + 1 :] for name in names)

    def _task_source(self, source: SourceRecipe, number: int, tasks: Sequence[Sequence[str]]) -> SourceRecipe:
        """A source with what the mode lets the task see of it."""
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


def videos_of_classes(source: SourceRecipe) -> dict[str, set[int]]:
    """In which videos of a source an object of each class is, by rising id of its categories.

    Raises:
        FileNotFoundError, ValueError: as `read_annotations`.
    """
    content = read_annotations(source.json, source.kind, source.class_mapping)
    videos = {category["id"]: set() for category in sorted(content["categories"], key=lambda category: category["id"])}
    for annotation in content.get("annotations") or []:
        if not annotation.get("iscrowd"):
            videos[annotation["category_id"]].add(annotation["video_id"])
    names = {category["id"]: category["name"] for category in content["categories"]}
    return {names[category_id]: ids for category_id, ids in videos.items()}


def shipped_schedules() -> list[str]:
    """Names of the schedules that ship with the package."""
    return sorted(path.stem for path in SCHEDULES_DIRECTORY.glob("*.yaml"))
