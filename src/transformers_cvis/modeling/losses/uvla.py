# SPDX-License-Identifier: Apache-2.0
"""Unified video label assignment: an object keeps its first query in all later clips of a video."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from .matching import check_enough_queries

RULES = ("paper", "released")


def unified_video_label_assignment(
    costs: list[np.ndarray], visible: np.ndarray, rule: str = "paper", leave_surplus: bool = False
) -> np.ndarray:
    """Give each object of one video a query in the clip where it first appears.

    Args:
        costs: Per clip the matching cost `(assignments, Q, newcomers)` of the objects that first appear in it, in their
            order. Assignments are independent of each other; each is that of one layer.
        visible: `(M, clips)` bool.
        rule: Queries that newcomers may not take. `"paper"`: every query that was ever given to an object.
            `"released"`: only those whose object is visible in the clip, so that a newcomer may take the query of an
            absent object, and both share it when the object returns; it reproduces the training of released
            checkpoints.
        leave_surplus: Leave newcomers beyond the free queries, those that cost most, without a query for the whole
            video, instead of raising.

    Returns:
        `(clips, assignments, M)`: the query of each object after each clip, -1 before its first appearance.

    Raises:
        ValueError: The video has more objects than queries, without `leave_surplus`.

    Source: Heo et al., A Generalized Framework for Video Instance Segmentation, section 3.3.
    """
    num_objects, num_clips = visible.shape
    num_sets, num_queries = costs[0].shape[:2]
    if not leave_surplus:
        check_enough_queries(num_objects, num_queries, "a video")
    assignment = np.full((num_sets, num_objects), -1)
    history = np.empty((num_clips, num_sets, num_objects), dtype=np.int64)
    seen = np.zeros(num_objects, dtype=bool)
    for clip, cost in enumerate(costs):
        newcomers = visible[:, clip] & ~seen
        holders = seen & visible[:, clip] if rule == "released" else seen
        for index in range(num_sets if newcomers.any() else 0):
            free = np.setdiff1d(np.arange(num_queries), assignment[index, holders])
            queries, objects = linear_sum_assignment(cost[index][free])
            assignment[index, np.flatnonzero(newcomers)[objects]] = free[queries]
        seen |= newcomers
        history[clip] = assignment
    return history
