# SPDX-License-Identifier: Apache-2.0
"""What the prompts of a new task start from: the principal directions of all older queries."""

import torch
from torch import Tensor

READINGS = ("directions", "loadings", "released")


@torch.no_grad()
def principal_rows(old_queries: Tensor, num_rows: int, reading: str = "directions") -> Tensor:
    """Rows along the directions in which the old queries differ most, as long as these are in the mean.

    The article (algorithm 1) takes the longest rows of a principal component analysis. Directions are orthonormal, so
    that it can be read in two ways; the sign of a direction is free, here its largest entry is positive.

    Args:
        old_queries: `(N, C)`, queries of the base and prompts of later tasks.
        num_rows: at most `min(N - 1, C)` of them have a direction; those beyond are the mean of the old queries.
        reading: `"directions"`: unit directions of largest variance. `"loadings"`: directions times their standard
            deviation, so that their lengths differ as the article needs; all of them together keep the mean length.
            `"released"`: the former with turned sign, as the released code stores them. (Its choice of directions is
            decided by rounding, since all of them are as long; here it is that of largest variance.)

    Returns:
        `(num_rows, C)` of the dtype and device of `old_queries`. Computed exactly, in float64.

    Raises:
        ValueError: an unknown reading.
    """
    if reading not in READINGS:
        raise ValueError(f"`reading` must be one of {', '.join(READINGS)}, got {reading!r}.")
    queries = old_queries.double()
    mean = queries.mean(dim=0)
    _, deviations, directions = torch.linalg.svd(queries - mean, full_matrices=False)
    largest = directions.abs().argmax(dim=1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    rows = directions * (deviations[:, None] if reading == "loadings" else 1)
    rows = rows * (queries.norm(dim=1).mean() / rows.norm(dim=1).mean().clamp(min=1e-12))
    if reading == "released":
        rows = -rows
    count = min(num_rows, len(queries) - 1, queries.shape[1])
    return torch.cat([rows[:count], mean.expand(num_rows - count, -1)]).to(old_queries)


__all__ = ["principal_rows"]
