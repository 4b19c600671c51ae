# SPDX-License-Identifier: Apache-2.0
"""Evaluate a model after each task of a schedule, and report all evaluations as json, markdown and plots."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import complete_file, write_json
from ..hub.owned_files import REPORT_FILE
from ..messages import check_choice
from .forgetting import ForgettingRate, crisp_forgetting, hvpl_forgetting, only_in_videos_with_group
from .ground_truth import GroundTruth, read_results
from .plots import bar_chart, heat_map, line_chart
from .video_ap import STATISTICS, EvaluationResult, evaluate_ytvis

FORGETTING_VIDEOS = ("containing", "all")
EVALUATED_CLASSES = ("seen", "all", "current")
MARKDOWN_FILE = "report.md"


@dataclass
class TaskEvaluation:
    """The 12 statistics of one model by class, by task and overall. All values are plain json.

    Attributes:
        after (`int`): the task that was learnt last, 0 for the base.
        classes (`dict[str, dict[str, float]]`): statistics by class, on the videos that HVPL's forgetting rate uses.
        classes_on_all_videos (`dict[str, dict[str, float]]`): statistics by class on all videos, for CRISP's forgetting
            rate.
        tasks (`list[dict[str, float]]`): statistics by task, on the videos that HVPL's forgetting rate uses.
        overall (`dict[str, dict[str, float]]`): statistics over the "seen" classes and the videos that contain one (as
            HVPL reports), over "all" classes and videos (as CRISP reports; classes not learnt yet count 0), and over
            the "current" classes and their videos.
    """

    after: int
    classes: dict[str, dict[str, float]]
    classes_on_all_videos: dict[str, dict[str, float]]
    tasks: list[dict[str, float]]
    overall: dict[str, dict[str, float]]


def evaluate_after_task(
    ground_truth: GroundTruth | dict | str | os.PathLike,
    results: list[dict] | dict | str | os.PathLike,
    tasks: Sequence[Sequence[str]],
    after: int,
    forgetting_videos: str = "containing",
) -> TaskEvaluation:
    """Evaluate the results of the model that has just learnt task `after`.

    Args:
        ground_truth: annotations of all test videos and classes, as for [`evaluate_ytvis`].
        results: tracks in all test videos, as for [`evaluate_ytvis`].
        tasks: names of the classes of every task of the schedule, the base first.
        after: the task that was learnt last, 0 for the base.
        forgetting_videos: "containing" evaluates a class or task on the videos that contain it, as HVPL does, so that
            false tracks in other videos do not count. "all" evaluates it on all videos.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a class is not in the ground truth or is in two tasks, the task `after` does not exist,
            `forgetting_videos` is unknown, or the ground truth and the results do not fit, see [`evaluate_ytvis`].
    """
    check_choice("forgetting_videos", forgetting_videos, FORGETTING_VIDEOS)
    if not 0 <= after < len(tasks):
        raise ValueError(f"Task {after} does not exist: the schedule has tasks 0 to {len(tasks) - 1}.")
    ground_truth = GroundTruth.read(ground_truth)
    results = read_results(results, ground_truth)
    id_of = _class_ids(ground_truth, tasks)
    task_ids = [[id_of[name] for name in names] for names in tasks]
    seen_ids = [category_id for ids in task_ids[: after + 1] for category_id in ids]

    def evaluate(groups: Sequence[Sequence[int]] | None = None) -> EvaluationResult:
        """Evaluate each group of categories on the videos that contain it, or all categories on all videos."""
        kept = results if groups is None else only_in_videos_with_group(results, ground_truth, groups)
        return evaluate_ytvis(ground_truth, kept)

    everywhere = evaluate()
    if forgetting_videos == "containing":
        by_class, by_task = evaluate([[category_id] for category_id in id_of.values()]), evaluate(task_ids)
    else:
        by_class = by_task = everywhere
    return TaskEvaluation(
        after=after,
        classes={name: by_class.per_category[category_id] for name, category_id in id_of.items()},
        classes_on_all_videos={name: everywhere.per_category[category_id] for name, category_id in id_of.items()},
        tasks=[by_task.summarize(ids) for ids in task_ids],
        overall={
            "seen": evaluate([seen_ids]).summarize(seen_ids),
            "all": everywhere.summary,
            "current": evaluate([task_ids[after]]).summarize(task_ids[after]),
        },
    )


@dataclass
class ContinualReport:
    """Evaluations after tasks 0 to t of one schedule.

    Attributes:
        tasks (`list[list[str]]`): names of the classes of every task so far, the base first.
        evaluations (`list[TaskEvaluation]`): one evaluation after each of these tasks.
        evaluate_classes (`str`): classes of the overall numbers: "seen", "all" or "current".
        undefined (`str`): option of [`hvpl_forgetting`].
        num_classes (`str`): option of [`crisp_forgetting`].

    Raises:
        ValueError: the evaluations are not those after tasks 0, 1, 2, ..., or `evaluate_classes` is unknown.
    """

    tasks: list[list[str]]
    evaluations: list[TaskEvaluation]
    evaluate_classes: str = "all"
    undefined: str = "exclude"
    num_classes: str = "old"

    def __post_init__(self) -> None:
        after = [evaluation.after for evaluation in self.evaluations]
        if not after or after != list(range(len(self.tasks))):
            raise ValueError(
                f"Expected one evaluation after each of {len(self.tasks)} tasks, in order, got evaluations after tasks "
                f"{after}."
            )
        check_choice("evaluate_classes", self.evaluate_classes, EVALUATED_CLASSES)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes of all tasks."""
        return [name for names in self.tasks for name in names]

    @property
    def learnt_after(self) -> list[int]:
        """Number of the task of each of `class_names`."""
        return [number for number, names in enumerate(self.tasks) for _ in names]

    def class_matrix(self, statistic: str = "AP", all_videos: bool = False) -> np.ndarray:
        """Return a statistic of each class (row) after each task (column), `(classes, tasks)`; 0 until it is learnt."""
        columns = [
            evaluation.classes_on_all_videos if all_videos else evaluation.classes for evaluation in self.evaluations
        ]
        values = np.array([[column[name][statistic] for column in columns] for name in self.class_names])
        values[np.array(self.learnt_after)[:, None] > np.arange(len(columns))] = 0
        return values

    def task_matrix(self, statistic: str = "AP") -> np.ndarray:
        """Return a statistic of each task (row) after each task (column), `(tasks, tasks)`; 0 until it is learnt."""
        size = len(self.tasks)
        values = [[evaluation.tasks[task][statistic] for evaluation in self.evaluations] for task in range(size)]
        return np.triu(np.array(values))

    def overall(self, statistic: str = "AP") -> list[float]:
        """Return a statistic over the evaluated classes after every task."""
        return [evaluation.overall[self.evaluate_classes][statistic] for evaluation in self.evaluations]

    def class_forgetting(self, statistic: str = "AP") -> ForgettingRate:
        """Compute HVPL's F over classes."""
        return hvpl_forgetting(self.class_matrix(statistic), self.learnt_after, self.undefined)

    def task_forgetting(self, statistic: str = "AP") -> ForgettingRate:
        """Compute HVPL's F over tasks."""
        return hvpl_forgetting(self.task_matrix(statistic), range(len(self.tasks)), self.undefined)

    def crisp_forgetting(self) -> ForgettingRate:
        """Compute CRISP's FR from the AP of each class over all videos."""
        return crisp_forgetting(self.class_matrix(all_videos=True), self.learnt_after, self.num_classes)

    def to_dict(self) -> dict:
        """Return plain json: options, evaluations, forgetting rates (None for a single task), names of the files."""
        rates = None
        if len(self.tasks) > 1:
            rates = {
                "hvpl_classes": {name: _or_none(self.class_forgetting(name).value) for name in STATISTICS},
                "hvpl_tasks": {name: _or_none(self.task_forgetting(name).value) for name in STATISTICS},
                "crisp": self.crisp_forgetting().value,
            }
        return {**asdict(self), "forgetting": rates, "files": sorted(self.files)}

    @classmethod
    def from_dict(cls, content: dict) -> "ContinualReport":
        """Build the report that `to_dict` or a `report.json` describes."""
        fields = {name: value for name, value in content.items() if name not in ("forgetting", "files")}
        fields["evaluations"] = [TaskEvaluation(**evaluation) for evaluation in content["evaluations"]]
        return cls(**fields)

    @classmethod
    def read(cls, path: str | os.PathLike) -> "ContinualReport":
        """Read the report in a `report.json`."""
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))

    def to_markdown(self) -> str:
        """Return tables in percent: overall and by task after every task, forgetting rates, AP by class."""
        steps = range(len(self.tasks))
        lines = [f"Overall numbers are over {self.evaluate_classes} classes. All numbers are percent.", ""]
        lines += _table(
            ["after task", "classes", "AP", "AP50", "AP75", "AR1", "AR10", *(f"AP task {task}" for task in steps)],
            [
                [
                    str(step),
                    str(sum(len(names) for names in self.tasks[: step + 1])),
                    *(_percent(self.overall(name)[step]) for name in ("AP", "AP50", "AP75", "AR1", "AR10")),
                    *(_percent(self.task_matrix()[task, step]) if task <= step else "" for task in steps),
                ]
                for step in steps
            ],
        )
        if len(self.tasks) > 1:
            rates = self.to_dict()["forgetting"]
            lines += [
                "",
                *_table(
                    ["forgetting", "AP", "AP50", "AP75", "AR1", "AR10"],
                    [
                        [label, *(_percent(rates[key][name]) for name in ("AP", "AP50", "AP75", "AR1", "AR10"))]
                        for label, key in (("HVPL, classes", "hvpl_classes"), ("HVPL, tasks", "hvpl_tasks"))
                    ]
                    + [["CRISP", _percent(rates["crisp"]), "", "", "", ""]],
                ),
            ]
        matrix = self.class_matrix()
        lines += [
            "",
            *_table(
                ["class", "task", *(f"AP after {step}" for step in steps)],
                [
                    [name, str(task), *(_percent(row[step]) if task <= step else "" for step in steps)]
                    for name, task, row in zip(self.class_names, self.learnt_after, matrix, strict=True)
                ],
            ),
        ]
        return "\n".join(lines) + "\n"

    @property
    def files(self) -> list[str]:
        """Names of the files that `save` writes. A report of one task has no plot of forgetting."""
        return [MARKDOWN_FILE, *self._plots, REPORT_FILE]

    @property
    def _plots(self) -> list[str]:
        """Names of the plots of this report."""
        return [name for name in _PLOTS if name != FORGETTING_PLOT or len(self.tasks) > 1]

    def save(self, folder: str | os.PathLike) -> list[Path]:
        """Write the files of the report into a folder.

        `report.json` is written last. Its key "files" names all files, so that a later push to the same revision of the
        Hub can delete those that it does not write again.

        Args:
            folder: folder of the files; made if it does not exist.

        Returns:
            Paths of the files.

        Raises:
            OSError: a file cannot be written; the message names it.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with complete_file(folder / MARKDOWN_FILE) as file:
            file.write(self.to_markdown().encode())
        for name in self._plots:
            with complete_file(folder / name) as file:
                _PLOTS[name](self).save(file, format="PNG")
        write_json(folder / REPORT_FILE, self.to_dict(), indent=1)
        return [folder / name for name in self.files]


def _draw_matrix(report: ContinualReport) -> Image.Image:
    """Draw the AP of every task after every task."""
    steps = [str(step) for step in range(len(report.tasks))]
    learnt = np.triu(np.ones((len(steps), len(steps)), dtype=bool))
    values = np.where(learnt, report.task_matrix() * 100, np.nan).T
    return heat_map(values, "AP in percent", "after task", "on task", steps, steps)


def _draw_steps(report: ContinualReport) -> Image.Image:
    """Draw AP and AR1 over the evaluated classes after every task."""
    series = {
        "mAP": [100 * value for value in report.overall("AP")],
        "AR1": [100 * value for value in report.overall("AR1")],
    }
    steps = [str(step) for step in range(len(report.tasks))]
    return line_chart(series, f"percent, over {report.evaluate_classes} classes", "after task", steps)


def _draw_forgetting(report: ContinualReport) -> Image.Image:
    """Draw how much of its AP every class of an older task has lost."""
    old = [name for names in report.tasks[:-1] for name in names]
    terms = dict(zip(old, report.class_forgetting().terms * 100, strict=True))
    return bar_chart(terms, "forgetting of AP per class, percent of the first value per task")


FORGETTING_PLOT = "forgetting.png"
_PLOTS: dict[str, Callable[[ContinualReport], Image.Image]] = {
    "ap_matrix.png": _draw_matrix,
    "steps.png": _draw_steps,
    FORGETTING_PLOT: _draw_forgetting,
}


def _class_ids(ground_truth: GroundTruth, tasks: Sequence[Sequence[str]]) -> dict[str, int]:
    """Return the category id of every class of the tasks, in order of the tasks.

    Raises:
        ValueError: a class is unknown or repeated, or a task is empty.
    """
    known = {name: category_id for category_id, name in ground_truth.categories.items()}
    names = [name for task in tasks for name in task]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"The ground truth has no class {unknown[0]!r}; it has {sorted(known)}.")
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ValueError(f"The class {repeated[0]!r} is in more than one task, or twice in one; keep one of them.")
    empty = [number for number, task in enumerate(tasks) if not len(task)]
    if empty:
        raise ValueError(f"Task {empty[0]} has no classes; give at least one.")
    return {name: known[name] for name in names}


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def _percent(value: float | None) -> str:
    """Format a value in percent; "-" for None, NaN and -1."""
    return "-" if value is None or not value >= 0 else f"{100 * value:.2f}"


def _or_none(value: float) -> float | None:
    """Replace NaN, which json does not have, by None."""
    return None if np.isnan(value) else value
