# SPDX-License-Identifier: Apache-2.0
"""Similarity of frame queries and video queries that belong to the same object."""

import torch
from torch import nn


def similarity_losses(embeddings: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the BCE of dot products, which are to be large for entries with the same id and small for others.

    Args:
        embeddings: `(..., entries, C)`: matched frame queries and video queries of each set.
        ids: `(..., entries)`: object of each entry, -1 without one; broadcasts against `embeddings`.

    Returns:
        Sum of the losses `(...)` and number of ordered pairs `(...)` of each set; pairs of an entry with itself count.

    Source: Heo et al., VITA, section 3.3.
    """
    logits = embeddings @ embeddings.transpose(-1, -2)
    alike = ids.unsqueeze(-1) == ids.unsqueeze(-2)
    present = ids != -1
    pairs = (present.unsqueeze(-1) & present.unsqueeze(-2)).to(logits.dtype)
    losses = nn.functional.softplus(logits) - logits * alike
    return (losses * pairs).sum(dim=(-1, -2)), pairs.sum(dim=(-1, -2))
