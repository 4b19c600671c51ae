# SPDX-License-Identifier: Apache-2.0
"""How much of what a model had learnt it has lost: forgetting rates of HVPL and CRISP.

Both compare, for what was learnt before the last task, the value right after its own task with the value at the end. In
shape comments: R rows (classes, or tasks), T tasks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..messages import check_choice
from .ground_truth import GroundTruth

HVPL_EPSILON = 1e-8
UNDEFINED_CHOICES = ("exclude", "released")
CLASS_COUNTS = ("old", "all")


@dataclass(frozen=True)
class ForgettingRate:
    """A forgetting rate and what it is made of.

    Attributes:
        value (`float`): 0 is nothing lost, 1 all of it at once; NaN where nothing could be compared.
        terms (`np.ndarray` of shape `(old rows,)`): relative loss of each row learnt before the last task, divided by
            the number of tasks since; NaN for a row that is left out.
    """

    value: float
    terms: np.ndarray


def hvpl_forgetting(values, learnt_after: Sequence[int], undefined: str = "exclude") -> ForgettingRate:
    """HVPL's F: mean over old rows of `max(0, first - last) / first / (tasks since)`.

    Args:
        values: `(R, T)`, column t the statistic after task t (0 is the base); rows are classes or tasks.
        learnt_after: `(R,)`, the task that each row belongs to.
        undefined: what becomes of a row whose first value is 0 or negative (nothing to find, -1), whose loss relative
            to it means nothing. "exclude": it is left out, of the mean's denominator too. "released": the formula of
            the released evaluation, with 1e-8 added to losses and first values, by which a row that is 0 from first to
            last counts as wholly forgotten, and one without ground truth as not forgotten.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, nothing learnt before the last task, or an
            unknown choice.
    """
    check_choice("undefined", undefined, UNDEFINED_CHOICES)
    first, last, since = _old_rows(values, learnt_after)
    if undefined == "released":
        terms = np.maximum(first - last + HVPL_EPSILON, 0) / (first + HVPL_EPSILON) / since
        return ForgettingRate(float(terms.mean()), terms)
    terms = _relative_losses(first, last, since)
    defined = ~np.isnan(terms)
    return ForgettingRate(float(terms[defined].mean()) if defined.any() else float("nan"), terms)


def crisp_forgetting(values, learnt_after: Sequence[int], num_classes: str = "old") -> ForgettingRate:
    """CRISP's FR (eq. 9): sum over old classes of `max(0, first - last) / first / (tasks since)`, over N_c classes.

    A class whose first value is 0 or negative adds nothing, and counts in N_c.

    Args:
        values: `(R, T)`, column t the AP per class after task t (0 is the base), over all test videos.
        learnt_after: `(R,)`, the task that each class belongs to.
        num_classes: what N_c is, which the article leaves open: the classes of all tasks but the last ("old"), or all.

    Raises:
        ValueError: as for [`hvpl_forgetting`].
    """
    check_choice("num_classes", num_classes, CLASS_COUNTS)
    terms = _relative_losses(*_old_rows(values, learnt_after))
    count = len(terms) if num_classes == "old" else len(learnt_after)
    return ForgettingRate(float(np.nansum(terms) / count), terms)


def only_in_videos_with_group(
    results: Iterable[dict], ground_truth: GroundTruth, groups: Sequence[Iterable[int]]
) -> list[dict]:
    """Results as if each group of categories were evaluated on the videos that hold one of its objects, and no others.

    Categories are matched apart from each other, so that dropping a track from a video without an object of its group
    is the same as leaving out the video. One group per class gives HVPL's per-class values, one per task its per-task
    values.

    Args:
        results: tracks `{"video_id", "category_id", ...}`.
        groups: category ids of each group; tracks of other categories are dropped.
    """
    group_of = {category_id: number for number, group in enumerate(groups) for category_id in group}
    held = {(row["video_id"], group_of.get(row["category_id"])) for row in ground_truth.annotations}
    return [
        track
        for track in results
        if track["category_id"] in group_of and (track["video_id"], group_of[track["category_id"]]) in held
    ]


def _old_rows(values, learnt_after: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of rows learnt before the last task: value right after the own task, value at the end, tasks in between."""
    values, learnt_after = np.asarray(values, dtype=np.float64), np.asarray(learnt_after)
    if values.ndim != 2 or learnt_after.shape != values.shape[:1]:
        raise ValueError(
            f"values have shape {values.shape}, expected (rows, tasks) with one row for each of the "
            f"{learnt_after.size} entries of learnt_after."
        )
    if not np.isfinite(values).all():
        raise ValueError("Some values are not finite; a statistic without ground truth is -1.")
    last_task = values.shape[1] - 1
    if learnt_after.size and not (learnt_after.min() >= 0 and learnt_after.max() <= last_task):
        raise ValueError(f"learnt_after has tasks {sorted(set(learnt_after.tolist()))}, expected 0 to {last_task}.")
    old = np.flatnonzero(learnt_after < last_task)
    if not old.size:
        raise ValueError("Nothing was learnt before the last task: forgetting needs two tasks at least.")
    return values[old, learnt_after[old]], values[old, last_task], last_task - learnt_after[old]


def _relative_losses(first: np.ndarray, last: np.ndarray, since: np.ndarray) -> np.ndarray:
    """NaN where the first value is not positive; a value of -1 at the end is a loss of all, never of more."""
    defined = first > 0
    terms = np.full(first.shape, np.nan)
    lost = np.maximum(first - np.maximum(last, 0), 0)
    terms[defined] = lost[defined] / first[defined] / since[defined]
    return terms
