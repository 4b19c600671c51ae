# SPDX-License-Identifier: Apache-2.0
"""Groups of queries: the base of a model, and the prompts that each later task adds.

P queries of a group, C channels.
"""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class GroupParameters:
    """The parameters of one group at one stage, whether of the base or of a later task."""

    features: torch.Tensor
    """`(P, C)`."""
    positions: list[torch.Tensor]
    """One `(P, C)` for each decoder layer."""
    mask_embedder: nn.Module
    """Query states `(..., C)` to mask embeddings."""
    token_positions: torch.Tensor | None = None
    """`(frame queries of the group, C)`, at the video stage only."""
