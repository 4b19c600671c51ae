# SPDX-License-Identifier: Apache-2.0
"""Unified video label assignment: an object keeps, over all clips of a video, the query it was given first."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from .matching import check_enough_queries

RULES = ("paper", "released")


def unified_video_label_assignment(
    costs: list[np.ndarray], visible: np.ndarray, rule: str = "paper", leave_surplus: bool = False
) -> np.ndarray:
    """Give each object of one video a query in the clip where it first appears.

    Args:
        costs: per clip the matching cost `(S, Q, newcomers)` of the objects which first appear in it, in their order; S
            independent assignments (layers).
        visible: `(objects, clips)` bool.
        rule: which queries newcomers may not take. `"paper"`: every query ever given to an object. `"released"`: only
            those whose object is visible in the clip, so that a newcomer may take the query of an object that is away,
            and both share it when the object returns; it reproduces the training of released checkpoints.
        leave_surplus: newcomers beyond the free queries, those that cost most, stay without one, in later clips, too.

    Returns:
        `(clips, S, objects)`: the query of each object after each clip, -1 before its first appearance.

    Raises:
        ValueError: when there are more objects than queries and none may be left.

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
