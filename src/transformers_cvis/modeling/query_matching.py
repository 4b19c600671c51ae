"""Which query of a frame continues which track, by the similarity of queries.

B videos, T frames of a clip, Q queries, C channels.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@torch.no_grad()
def match_frame_queries(frame_queries: Tensor, previous: Tensor | None = None, inverse: bool = False) -> Tensor:
    """Which query of each frame continues which track.

    Each frame is matched to the frame before it, as reordered already: the assignment of least total
    1 - cosine similarity (MinVIS, section 3.3). Reordering only permutes the rows of a cost matrix, so the matrices of
    all frames are made at once on the device and reach the host in one transfer.

    Args:
        frame_queries: `(B, T, Q, C)`.
        previous: `(B, Q, C)`, queries of the frame before in the order of the tracks; None where the video begins, then
            the first frame makes the order.
        inverse: reorder each frame by the inverse of its assignment, as the trackers released by DVIS and SPVIS do.

    Returns:
        `(B, T, Q)` long: the query of the frame that takes each place of the order.

    Raises:
        ValueError: when a similarity is not finite.
    """
    directions = _directions(frame_queries)
    first = directions[:, 0] if previous is None else _directions(previous)
    before = torch.cat([first[:, None], directions[:, :-1]], dim=1)
    with torch.autocast(directions.device.type, enabled=False):
        costs = (1 - before @ directions.transpose(2, 3)).cpu().numpy()  # (B, T, Q of the frame before, Q)
    if not np.isfinite(costs).all():
        raise ValueError(
            "Frame queries cannot be matched: they hold NaN or infinity. Check the weights and the pixel values, or "
            "run in bfloat16 or float32 instead of float16."
        )
    orders = np.empty(costs.shape[:3], dtype=np.int64)
    for video, video_costs in enumerate(costs):
        order = np.arange(costs.shape[3])
        for frame, cost in enumerate(video_costs):
            if frame or previous is not None:
                _, order = linear_sum_assignment(cost[order])
                order = np.argsort(order) if inverse else order
            orders[video, frame] = order
    return torch.from_numpy(orders).to(frame_queries.device)


def _directions(queries: Tensor) -> Tensor:
    """Queries of length 1, in float32 at least."""
    return F.normalize(queries.to(torch.promote_types(queries.dtype, torch.float32)), dim=-1)


__all__ = ["match_frame_queries"]
