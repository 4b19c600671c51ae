# SPDX-License-Identifier: Apache-2.0
"""Initialisation of the prompts of a new task by principal directions of the older queries."""

import torch

from ...messages import check_choice

READINGS = ("directions", "loadings", "released")


@torch.no_grad()
def principal_rows(old_queries: torch.Tensor, num_rows: int, reading: str = "directions") -> torch.Tensor:
    """Return the principal directions of the old queries, rescaled to the mean norm of the queries.

    The paper (algorithm 1) takes the longest rows of a principal component analysis. Directions are orthonormal, so
    this can be read in two ways. The sign of a direction is arbitrary; here its largest entry is positive.

    Args:
        old_queries: `(N, C)`, queries of the base and prompts of later tasks.
        num_rows: number of rows. At most `min(N - 1, C)` have a direction; the others are the mean of the old queries.
        reading: `"directions"`: unit directions of largest variance. `"loadings"`: directions times their standard
            deviation, so that their lengths differ as in the paper; together they keep the mean norm. `"released"`:
            like `"directions"` with the opposite sign, as the released code stores them. The released code selects
            directions by length, which is the same for all up to rounding; here those of largest variance are taken.

    Returns:
        `(num_rows, C)`, with the dtype and device of `old_queries`. Computed exactly, in float64.

    Raises:
        ValueError: `reading` is unknown.
    """
    check_choice("reading", reading, READINGS)
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
