# SPDX-License-Identifier: Apache-2.0
"""Forgetting rates of HVPL and CRISP.

Both compare the value of a class or task right after it was learnt with its value after the last task. Shapes use R for
rows (classes or tasks) and T for tasks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..messages import check_choice
from .ground_truth import GroundTruth

HVPL_EPSILON = 1e-8
UNDEFINED_CHOICES = ("exclude", "released")
CLASS_COUNTS = ("old", "all")


@dataclass(frozen=True)
class ForgettingRate:
    """A forgetting rate and its terms.

    Attributes:
        value (`float`): 0 if nothing is lost, 1 if everything is lost within one task, NaN if no row can be compared.
        terms (`np.ndarray` of shape `(old rows,)`): relative loss of each row learnt before the last task, divided by
            the number of tasks since then; NaN for a row that is left out.
    """

    value: float
    terms: np.ndarray


def hvpl_forgetting(values: ArrayLike, learnt_after: Sequence[int], undefined: str = "exclude") -> ForgettingRate:
    """Compute HVPL's F, the mean over old rows of `max(0, first - last) / first / (tasks since)`.

    Args:
        values: statistic of each class or task after each task (0 is the base), of shape `(R, T)`.
        learnt_after: the task that each row belongs to, of shape `(R,)`.
        undefined: treatment of a row whose first value is 0, or -1 for a row without ground truth. Its relative loss is
            undefined. "exclude" leaves it out, also from the denominator of the mean. "released" takes the formula of
            the released evaluation, which adds 1e-8 to losses and first values: a row that is always 0 counts as fully
            forgotten, and a row without ground truth as not forgotten.

    Raises:
        ValueError: the shapes do not fit, a value is not finite, nothing was learnt before the last task, or
            `undefined` is unknown.
    """
    check_choice("undefined", undefined, UNDEFINED_CHOICES)
    first, last, since = _old_rows(values, learnt_after)
    if undefined == "released":
        terms = np.maximum(first - last + HVPL_EPSILON, 0) / (first + HVPL_EPSILON) / since
        return ForgettingRate(float(terms.mean()), terms)
    terms = _relative_losses(first, last, since)
    defined = ~np.isnan(terms)
    return ForgettingRate(float(terms[defined].mean()) if defined.any() else float("nan"), terms)


def crisp_forgetting(values: ArrayLike, learnt_after: Sequence[int], num_classes: str = "old") -> ForgettingRate:
    """Compute CRISP's FR (eq. 9): the sum over old classes of `max(0, first - last) / first / (tasks since)`, over N_c.

    A class whose first value is 0 or negative adds nothing to the sum, but counts in N_c.

    Args:
        values: AP of each class over all test videos after each task (0 is the base), of shape `(R, T)`.
        learnt_after: the task that each class belongs to, of shape `(R,)`.
        num_classes: the number N_c, which the article does not define: the classes of all tasks but the last ("old"),
            or all classes ("all").

    Raises:
        ValueError: the shapes do not fit, a value is not finite, nothing was learnt before the last task, or
            `num_classes` is unknown.
    """
    check_choice("num_classes", num_classes, CLASS_COUNTS)
    terms = _relative_losses(*_old_rows(values, learnt_after))
    count = len(terms) if num_classes == "old" else len(learnt_after)
    return ForgettingRate(float(np.nansum(terms) / count), terms)


def only_in_videos_with_group(
    results: Iterable[dict], ground_truth: GroundTruth, groups: Sequence[Iterable[int]]
) -> list[dict]:
    """Keep the tracks in videos that contain an object of the same group of categories.

    Categories are matched independently of each other. Dropping a track from a video without an object of its group
    therefore equals evaluating the group without that video. One group per class gives HVPL's per-class values, one
    group per task its per-task values.

    Args:
        results: tracks `{"video_id", "category_id", ...}`.
        ground_truth: annotated videos.
        groups: category ids of each group; tracks of other categories are dropped.
    """
    group_of = {category_id: number for number, group in enumerate(groups) for category_id in group}
    held = {(row["video_id"], group_of.get(row["category_id"])) for row in ground_truth.annotations}
    return [
        track
        for track in results
        if track["category_id"] in group_of and (track["video_id"], group_of[track["category_id"]]) in held
    ]


def _old_rows(values: ArrayLike, learnt_after: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read the rows learnt before the last task.

    Returns:
        For each row, the value right after its own task, the value after the last task, and the number of tasks between
        the two, each of shape `(old rows,)`.
    """
    matrix, tasks = np.asarray(values, dtype=np.float64), np.asarray(learnt_after)
    if matrix.ndim != 2 or tasks.shape != matrix.shape[:1]:
        raise ValueError(
            f"values have shape {matrix.shape}, expected (rows, tasks) with one row for each of the "
            f"{tasks.size} entries of learnt_after."
        )
    if not np.isfinite(matrix).all():
        raise ValueError("Some values are not finite; give -1 for a statistic without ground truth.")
    last_task = matrix.shape[1] - 1
    if tasks.size and not (tasks.min() >= 0 and tasks.max() <= last_task):
        raise ValueError(f"learnt_after has tasks {sorted(set(tasks.tolist()))}, expected 0 to {last_task}.")
    old = np.flatnonzero(tasks < last_task)
    if not old.size:
        raise ValueError("Nothing was learnt before the last task; forgetting needs at least two tasks.")
    return matrix[old, tasks[old]], matrix[old, last_task], last_task - tasks[old]


def _relative_losses(first: np.ndarray, last: np.ndarray, since: np.ndarray) -> np.ndarray:
    """Compute the loss of each row relative to its first value, per task since then.

    The loss is NaN where the first value is not positive. A last value of -1 counts as 0, so that a row never loses
    more than it had.
    """
    defined = first > 0
    terms = np.full(first.shape, np.nan)
    lost = np.maximum(first - np.maximum(last, 0), 0)
    terms[defined] = lost[defined] / first[defined] / since[defined]
    return terms
