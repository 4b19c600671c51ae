# SPDX-License-Identifier: Apache-2.0
"""Matching of queries to tracks, from frame to frame and from window to window.

B videos, T frames of a clip, Q queries, C channels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from ...precision import at_least_float32

NOT_FINITE = (
    "Queries cannot be matched: they hold NaN or infinity. Check the weights and the pixel values, or run in bfloat16 "
    "or float32 instead of float16."
)


@torch.no_grad()
def match_frame_queries(
    frame_queries: torch.Tensor, previous: torch.Tensor | None = None, inverse: bool = False
) -> torch.Tensor:
    """Match the queries of each frame to the tracks.

    Each frame is matched to the reordered frame before it, by the assignment of least total 1 - cosine similarity
    (MinVIS, section 3.3). Reordering only permutes the rows of a cost matrix, so the matrices of all frames are
    computed at once on the device and copied to the host in one transfer.

    Args:
        frame_queries: `(B, T, Q, C)`.
        previous: `(B, Q, C)`, queries of the frame before, in the order of the tracks; None at the start of a video,
            where the first frame sets the order.
        inverse: reorder each frame by the inverse of its assignment, like the released trackers of DVIS and SPVIS.

    Returns:
        `(B, T, Q)` long: for each track, the query of the frame that continues it.

    Raises:
        ValueError: a similarity is not finite.
    """
    directions = _directions(frame_queries)
    first = directions[:, 0] if previous is None else _directions(previous)
    before = torch.cat([first[:, None], directions[:, :-1]], dim=1)
    with torch.autocast(directions.device.type, enabled=False):
        costs = (1 - before @ directions.transpose(2, 3)).cpu().numpy()  # (B, T, Q of the frame before, Q)
    if not np.isfinite(costs).all():
        raise ValueError(NOT_FINITE)
    orders = np.empty(costs.shape[:3], dtype=np.int64)
    for video, video_costs in enumerate(costs):
        order = np.arange(costs.shape[3])
        for frame, cost in enumerate(video_costs):
            if frame or previous is not None:
                _, order = linear_sum_assignment(cost[order])
                order = np.argsort(order) if inverse else order
            orders[video, frame] = order
    return torch.from_numpy(orders).to(frame_queries.device)


@torch.no_grad()
def match_window_queries(
    queries: torch.Tensor,
    mask_logits: torch.Tensor,
    previous: torch.Tensor,
    previous_mask_logits: torch.Tensor,
    group_widths: Sequence[int],
) -> torch.Tensor:
    """Match the queries of a window to the tracks of the window before, with which it shares frames.

    Each group of queries is matched independently, by the assignment of largest total similarity: the IoU of two masks
    over the shared frames plus the cosine of two queries. The IoU shows directly that two queries segment the same
    object; the cosine also works for an object that is absent from the shared frames, whose mask is empty there.
    Classes would add nothing, because they are a function of the query.

    Args:
        queries: `(B, Q, C)`, queries of the window.
        mask_logits: `(B, Q, pixels)`, their masks in the shared frames, of any resolution.
        previous: `(B, Q, C)`, queries of the window before, in the order of the tracks.
        previous_mask_logits: `(B, Q, pixels)`, their masks in the shared frames.
        group_widths: number of queries of each group; they add up to Q.

    Returns:
        `(B, Q)` long: for each track, the query of the window that continues it.

    Raises:
        ValueError: a similarity is not finite.
    """
    orders, start = [], 0
    parts = (queries, mask_logits, previous, previous_mask_logits)
    for group in zip(*(part.split(list(group_widths), dim=1) for part in parts), strict=True):
        ours, theirs = _directions(group[0]), _directions(group[2])
        inside, inside_before = (group[index].gt(0).to(ours.dtype) for index in (1, 3))
        with torch.autocast(ours.device.type, enabled=False):
            shared = inside_before @ inside.transpose(1, 2)  # (B, tracks, queries)
            areas = inside_before.sum(2)[:, :, None] + inside.sum(2)[:, None]
            similarity = theirs @ ours.transpose(1, 2) + shared / (areas - shared).clamp(min=1)
        similarity = similarity.cpu().numpy()
        if not np.isfinite(similarity).all():
            raise ValueError(NOT_FINITE)
        order = np.stack([linear_sum_assignment(video, maximize=True)[1] for video in similarity])
        orders.append(torch.from_numpy(order).to(queries.device) + start)
        start += len(order[0])
    return torch.cat(orders, dim=1)


def _directions(queries: torch.Tensor) -> torch.Tensor:
    """Return the queries scaled to length 1, in at least float32."""
    return nn.functional.normalize(at_least_float32(queries), dim=-1)


__all__ = ["match_frame_queries", "match_window_queries"]
