# SPDX-License-Identifier: Apache-2.0
"""What CRISP asks of queries beside the masks: to resemble the prompt of a class, and to stay apart from each other.

P queries, B clips, n classes, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...precision import at_least_float32

SMALLEST_NORM = 1e-8


def match_prompts(queries: Tensor, prompts: Tensor, similarity: str = "cosine") -> Tensor:
    """The prompt that each query is most similar to; no gradient passes through the choice.

    Args:
        queries: `(P, C)`
        prompts: `(n, C)`
        similarity: "cosine" or "dot".

    Returns:
        `(P,)` long. Source: equation 1.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, prompts = at_least_float32(queries.detach()), at_least_float32(prompts.detach())
        return _similarities(queries, prompts, similarity).argmax(1)


def contrastive_loss(queries: Tensor, prompts: Tensor, matched: Tensor, similarity: str = "dot") -> Tensor:
    """The ISC loss: the matched prompt of each query against those of all other classes, in the mean over the queries.

    Args:
        queries: `(P, C)`
        prompts: `(n, C)`
        matched: `(P,)` long
        similarity: "dot" or "cosine".
    """
    with torch.autocast(queries.device.type, enabled=False):
        return F.cross_entropy(_similarities(at_least_float32(queries), at_least_float32(prompts), similarity), matched)


def correlation_loss(queries: Tensor, target: Tensor) -> Tensor:
    """The IC loss: mean squared difference of the queries' cosines to each other, `(B, P, C)`, and `target`, `(P, P)`.

    Source: equation 6.
    """
    with torch.autocast(queries.device.type, enabled=False):
        directions = F.normalize(at_least_float32(queries), dim=-1)
        cosines = directions @ directions.transpose(-1, -2)
        return F.mse_loss(cosines, target.to(cosines).expand_as(cosines))


def _similarities(queries: Tensor, prompts: Tensor, similarity: str) -> Tensor:
    """(P, C) and (n, C) -> (P, n)"""
    if similarity == "cosine":
        queries, prompts = (F.normalize(rows, dim=1, eps=SMALLEST_NORM) for rows in (queries, prompts))
    return queries @ prompts.T


__all__ = ["contrastive_loss", "correlation_loss", "match_prompts"]
