# SPDX-License-Identifier: Apache-2.0
"""Losses of CRISP on queries: similarity to the prompt of a class, and correlation between queries.

B clips, P queries of a group, C channels; the prompts are those of the classes of one task.
"""

import torch
from torch import nn

from ...precision import at_least_float32

SMALLEST_NORM = 1e-8


def match_prompts(queries: torch.Tensor, prompts: torch.Tensor, similarity: str = "cosine") -> torch.Tensor:
    """Return the index of the most similar prompt for each query, without gradients (equation 1).

    Args:
        queries: `(P, C)`.
        prompts: `(classes, C)`.
        similarity: "cosine" or "dot".

    Returns:
        `(P,)` long.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, prompts = at_least_float32(queries.detach()), at_least_float32(prompts.detach())
        return _similarities(queries, prompts, similarity).argmax(1)


def contrastive_loss(
    queries: torch.Tensor, prompts: torch.Tensor, matched: torch.Tensor, similarity: str = "dot"
) -> torch.Tensor:
    """Compute the ISC loss: contrast the matched prompt of each query with the prompts of all other classes.

    Args:
        queries: `(P, C)`.
        prompts: `(classes, C)`.
        matched: `(P,)` long, index of the matched prompt of each query.
        similarity: "dot" or "cosine".

    Returns:
        The mean over the queries, a scalar.
    """
    with torch.autocast(queries.device.type, enabled=False):
        similarities = _similarities(at_least_float32(queries), at_least_float32(prompts), similarity)
        return nn.functional.cross_entropy(similarities, matched)


def correlation_loss(queries: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Compute the IC loss: the mean squared error of the cosines between queries (equation 6).

    Args:
        queries: `(B, P, C)`.
        target: `(P, P)`, target cosines.

    Returns:
        A scalar.
    """
    with torch.autocast(queries.device.type, enabled=False):
        directions = nn.functional.normalize(at_least_float32(queries), dim=-1)
        cosines = directions @ directions.transpose(-1, -2)
        return nn.functional.mse_loss(cosines, target.to(cosines).expand_as(cosines))


def _similarities(queries: torch.Tensor, prompts: torch.Tensor, similarity: str) -> torch.Tensor:
    """Compute the similarities `(P, classes)` of queries `(P, C)` and prompts `(classes, C)`."""
    if similarity == "cosine":
        queries, prompts = (nn.functional.normalize(rows, dim=1, eps=SMALLEST_NORM) for rows in (queries, prompts))
    return queries @ prompts.T


__all__ = ["contrastive_loss", "correlation_loss", "match_prompts"]
