# SPDX-License-Identifier: Apache-2.0
"""Prepare a class-incremental run: tasks, recipes and data, and all checks before the training."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from accelerate.state import PartialState
from huggingface_hub import HfApi
from torch.utils.data import Dataset

from ..data import is_split_of, read_annotations, split_ytvis
from ..evaluation import GroundTruth
from ..files import set_aside, write_json
from ..modeling.auto import load_config
from ..training.build import build_dataset, config_of_base
from ..training.recipe import Recipe, SourceSettings
from ..training.trainer import check_precision
from .gradient_projection import RELEASED_ROWS
from .schedule import Schedule, videos_of_classes

SCHEDULE_FILE = "schedule.json"
# Other systems whose trained base a system accepts: they share all weights except the class tokens of CRISP.
BASES = {"crisp": ("task_clip_detector",), "task_clip_detector": ("crisp",)}
REPORT_FOLDER = "report"


class RunPlan:
    """Tasks, recipes and data of a class-incremental run, derived from the schedule and its data.

    Args:
        schedule: the schedule.
        output_dir: folder of the run; with `test_share`, it must hold the train/test split of the first source.
    """

    def __init__(self, schedule: Schedule, output_dir: Path) -> None:
        self.schedule = schedule
        self.output_dir = output_dir

    @property
    def split_folder(self) -> Path:
        """Folder of the train/test split of the first source, used with `test_share`."""
        return self.output_dir / "splits"

    @cached_property
    def train_sources(self) -> list[SourceSettings]:
        """Training sources in use, without the videos that are held out."""
        sources = [source for source in self.schedule.train if source.use]
        if self.schedule.test_share is None:
            return sources
        return [replace(sources[0], json=str(self.split_folder / "train_split.json")), *sources[1:]]

    @cached_property
    def test_source(self) -> SourceSettings:
        """Source to evaluate on after every task."""
        if self.schedule.test is not None:
            return self.schedule.test
        return replace(self.schedule.train[0], json=str(self.split_folder / "test_split.json"))

    @cached_property
    def videos_of_classes(self) -> list[dict[str, set[int]]]:
        """Ids of the videos that show each class, for each training source."""
        return [videos_of_classes(source) for source in self.train_sources]

    @cached_property
    def tasks(self) -> list[list[str]]:
        """Class names of every task, the base first.

        Raises:
            ValueError: if the classes do not fit the training data.
        """
        tasks = self.schedule.classes.assign(list(self.videos_of_classes[0]), self.schedule.seed)
        for number, name in ((number, name) for number, names in enumerate(tasks) for name in names):
            if not any(videos.get(name) for videos in self.videos_of_classes):
                raise ValueError(f"No video of the training data shows the class {name!r} of task {number}.")
        return [[name for names in tasks for name in names]] if self.schedule.rules.learns_all_at_once else tasks

    @cached_property
    def ground_truth(self) -> dict:
        """Ground truth of the test videos, restricted to the classes of the schedule.

        Raises:
            ValueError: if the test data lack a class or have annotations that cannot be evaluated.
        """
        source = self.test_source
        content = read_annotations(source.json, source.kind, source.class_mapping)
        classes = {name for names in self.tasks for name in names}
        missing = sorted(classes - {category["name"] for category in content["categories"]})
        if missing:
            raise ValueError(
                f"{source.json} lacks classes of the schedule: {', '.join(missing)}. Its classes are "
                f"{', '.join(category['name'] for category in content['categories'])}; rename them with a "
                "`class_mapping`."
            )
        kept = {category["id"] for category in content["categories"] if category["name"] in classes}
        content["categories"] = [category for category in content["categories"] if category["id"] in kept]
        content["annotations"] = [row for row in content["annotations"] if row["category_id"] in kept]
        GroundTruth.read(content).check_annotations()
        return content

    @cached_property
    def recipes(self) -> list[Recipe]:
        """Recipe of every task, with the training sources that show a class of the task."""
        recipes = []
        for number in range(len(self.tasks)):
            sources = [
                source
                for source, videos in zip(self.train_sources, self.videos_of_classes, strict=True)
                if self.schedule.videos_of_task(number, self.tasks, videos)
            ]
            recipes.append(self.schedule.task_recipe(number, self.tasks, sources or self.train_sources))
        return recipes

    @cached_property
    def datasets(self) -> list[Dataset]:
        """Training data sets of all tasks, whose tables are built here, which checks the data.

        Raises:
            ValueError: if the data of a task are not valid; the message names the task.
        """
        datasets = []
        for number, recipe in enumerate(self.recipes):
            try:
                datasets.append(build_dataset(recipe)[0])
            except ValueError as error:
                raise ValueError(f"Task {number} ({', '.join(self.tasks[number])}): {error}") from error
        return datasets

    @cached_property
    def repository(self) -> str:
        """Full name of the repository to push to, created if needed, which checks the token and its permission."""
        push = self.schedule.push
        return HfApi().create_repo(push.repo, private=push.private, exist_ok=True).repo_id


def prepare(schedule: Schedule, output_dir: Path, resume: str) -> RunPlan:
    """Check a schedule as far as possible without training, and write it to the folder of the run.

    If a check fails, the folder stays as it was.

    Args:
        schedule: the schedule.
        output_dir: folder of the run.
        resume: "auto" to continue the run in the folder, "restart" to delete it after all checks have passed.

    Returns:
        The plan of the run.

    Raises:
        FileNotFoundError: if a data set or the base model does not exist.
        ValueError: if schedule, data and base model do not fit together, or the folder holds the run of another
            schedule.
    """
    plan = RunPlan(schedule, output_dir)
    state, path = PartialState(), output_dir / SCHEDULE_FILE
    if state.is_main_process:
        with contextlib.ExitStack() as stack:
            if resume == "restart":
                stack.enter_context(_former_run_set_aside(plan))
            if path.is_file():
                _check_same_schedule(plan, json.loads(path.read_text(encoding="utf-8")))
            stack.enter_context(_videos_held_out(plan, has_begun=path.is_file()))
            _ = plan.ground_truth, plan.datasets  # fill the cache before the other processes read it
            _check_base_model(plan)
            _check_prompts(plan)
            _check_released_directions(plan)
            for recipe in plan.recipes:
                check_precision(recipe)
            if schedule.push is not None:
                _ = plan.repository
            output_dir.mkdir(parents=True, exist_ok=True)
            write_json(path, schedule.to_dict(), indent=2)
    state.wait_for_everyone()
    _ = plan.ground_truth, plan.datasets
    return plan


@contextlib.contextmanager
def _videos_held_out(plan: RunPlan, has_begun: bool) -> Iterator[None]:
    """Context manager: create the train/test split of the first source; keep it only if the block succeeds.

    Args:
        plan: the plan of the run.
        has_begun: True if tasks may have been learnt already, so that the split must not change.
    """
    schedule, output_dir = plan.schedule, plan.output_dir
    source, share = schedule.train[0].json, schedule.test_share
    if share is None or is_split_of(plan.split_folder, source, share, schedule.seed):
        yield
        return
    if has_begun and plan.split_folder.exists():
        raise ValueError(
            f"{source} has changed since this run held out its test videos ({plan.split_folder}), so its tasks may "
            "have been trained on videos of the new test part. Restore the data, give another output folder, or delete "
            "this run with --resume restart."
        )
    is_new = not output_dir.exists()
    try:
        split_ytvis(source, plan.split_folder, share, schedule.seed)
        yield
    except BaseException:
        shutil.rmtree(plan.split_folder, ignore_errors=True)
        if is_new:
            shutil.rmtree(output_dir, ignore_errors=True)
        raise


@contextlib.contextmanager
def _former_run_set_aside(plan: RunPlan) -> Iterator[None]:
    """Context manager: move the previous run aside; restore it if the block fails, delete it otherwise."""
    output_dir = plan.output_dir
    parts = [*output_dir.glob("task-*"), output_dir / REPORT_FOLDER, plan.split_folder, output_dir / SCHEDULE_FILE]
    parts = [path for path in parts if path.exists()]
    with set_aside(parts, output_dir):
        yield


def _check_same_schedule(plan: RunPlan, former: dict) -> None:
    """Check that the run in the folder has the same schedule, except for the parts that may change during a run."""
    ours, theirs = _fixed_parts(plan.schedule.to_dict()), _fixed_parts(former)
    if changed := [key for key in ours if ours[key] != theirs.get(key)]:
        raise ValueError(
            f"{plan.output_dir} holds the run of another schedule: it differs in {', '.join(changed)}. Tasks build on "
            "each other, so the run cannot continue with new values: give another output folder, or delete this run "
            "with --resume restart."
        )


def _fixed_parts(schedule: dict) -> dict:
    """Return the part of a schedule that must not change during a run."""
    kept = {key: value for key, value in schedule.items() if key not in ("output_dir", "push", "report")}
    return {**kept, "report.forgetting_videos": schedule["report"]["forgetting_videos"]}


def _check_base_model(plan: RunPlan) -> None:
    """Check that the trained base, if any, has the system and the classes of the schedule."""
    schedule = plan.schedule
    start = schedule.base_model
    if start is None:
        return
    remedy = "Give the folder of a learnt task, such as runs/eclipse/task-0, or a model on the Hub."
    config = load_config(start, None, f"`base_model`: {start}", remedy)
    system = schedule.rules.system
    if config.model_type not in (system, *BASES.get(system, ())):
        raise ValueError(f"`base_model`: {start} is a {config.model_type} model, {schedule.method} needs {system}.")
    names = [config.id2label[index] for index in sorted(config.id2label)]
    if names != plan.tasks[0]:
        raise ValueError(
            f"`base_model`: {start} must have the classes of the first task in the same order, "
            f"{', '.join(plan.tasks[0])}, got {', '.join(names)}."
        )


def _check_prompts(plan: RunPlan) -> None:
    """Check that the model can add the prompts of every task."""
    schedule = plan.schedule
    config = config_of_base(plan.recipes[0], schedule.base_model)
    if schedule.rules.has_prompts and hasattr(config, "check_num_prompts"):
        for names in plan.tasks[1:]:
            config.check_num_prompts(schedule.prompts_of(names))


def _check_released_directions(plan: RunPlan) -> None:
    """Check that the released gradient correction has as many frames and channels as it needs."""
    settings = plan.schedule.gradient_projection
    collecting = plan.recipes[:-1]  # no task follows the last one
    if settings is None or settings.space != "released" or not collecting:
        return
    for number, recipe in enumerate(collecting):
        num_clips, clip_length = settings.num_clips, recipe.data.num_frames
        if num_clips * clip_length < RELEASED_ROWS:
            raise ValueError(
                f"`gradient_projection`: the released procedure needs {RELEASED_ROWS} frames of every task, but task "
                f"{number} gives {num_clips} clips of {clip_length} frames, which is {num_clips * clip_length}: set "
                f"`num_clips` to {-(-RELEASED_ROWS // clip_length)} or more."
            )
    num_channels = config_of_base(plan.recipes[0], plan.schedule.base_model).detector_config.hidden_dim
    if num_channels != RELEASED_ROWS:
        raise ValueError(
            f"`gradient_projection`: the released procedure applies directions of {RELEASED_ROWS} frames to channels, "
            f"so it needs a model with {RELEASED_ROWS} channels (`detector_config.hidden_dim`), got {num_channels}. "
            "Use `space: features`."
        )


__all__ = ["REPORT_FOLDER", "SCHEDULE_FILE", "RunPlan", "prepare"]
