# SPDX-License-Identifier: Apache-2.0
"""Groups of queries: the queries of the base, and the prompts that each later task adds.

P queries of a group, C channels.
"""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class GroupParameters:
    """Parameters of one query group, of the base or of a later task, at one stage."""

    features: torch.Tensor
    """Learned queries `(P, C)`."""
    positions: list[torch.Tensor]
    """Query positions of each decoder layer, `(P, C)` each."""
    mask_embedder: nn.Module
    """Maps query states `(..., C)` to mask embeddings."""
    token_positions: torch.Tensor | None = None
    """Positions of the frame queries that the group reads, `(frame queries of the group, C)`; video stage only."""
