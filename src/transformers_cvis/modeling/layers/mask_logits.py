# SPDX-License-Identifier: Apache-2.0
"""Mask embeddings of queries, and their products with the mask features.

B videos, T frames, N images, Q queries, C channels, S pixels of a map, h x w its height and width.
"""

import torch
from torch import nn

from ...kernels import Linear

PIXELS_AT_ONCE = 2048


class MaskEmbedder(nn.Sequential):
    """Three Linear layers with ReLUs between them: query states to mask embeddings (parameters `{0,1,2}.0`)."""

    def __init__(self, hidden_dim: int, output_dim: int) -> None:
        super().__init__(
            nn.Sequential(Linear(hidden_dim, hidden_dim), nn.ReLU(inplace=True)),
            nn.Sequential(Linear(hidden_dim, hidden_dim), nn.ReLU(inplace=True)),
            nn.Sequential(Linear(hidden_dim, output_dim)),
        )


def mask_logits(mask_embeddings: torch.Tensor, mask_features: torch.Tensor) -> torch.Tensor:
    """Compute the mask logits of each query on each frame of a clip.

    Args:
        mask_embeddings: `(B, Q, C)`, one for all frames, or `(B, T, Q, C)`, one for each frame.
        mask_features: `(B, T, C, h, w)`.

    Returns:
        Mask logits, `(B, Q, T, h, w)`.
    """
    if mask_embeddings.dim() == 3:
        mask_embeddings = mask_embeddings[:, None]
    return frame_mask_logits(mask_embeddings, mask_features).transpose(1, 2)


def frame_mask_logits(mask_embeddings: torch.Tensor, mask_features: torch.Tensor) -> torch.Tensor:
    """Compute the mask logits of the queries of each image or frame.

    Args:
        mask_embeddings: `(..., Q, C)`.
        mask_features: `(..., C, h, w)`.

    Returns:
        Mask logits, `(..., Q, h, w)`.
    """
    return (mask_embeddings @ mask_features.flatten(-2)).unflatten(-1, mask_features.shape[-2:])


def group_mask_logits(mask_embeddings: torch.Tensor, mask_features: torch.Tensor) -> torch.Tensor:
    """Compute the mask logits of the queries of one group, or of several groups on the same images.

    Args:
        mask_embeddings: `(N, Q, C)`, or `(groups, N, Q, C)`.
        mask_features: `(N, C, S)`.

    Returns:
        Mask logits, `(N, Q, S)`, or `(groups, N, Q, S)`.
    """
    if mask_embeddings.dim() == 3:
        return mask_embeddings @ mask_features
    images = []
    for embeddings, features in zip(mask_embeddings.unbind(1), mask_features, strict=True):
        # A few pixels at a time, so that they stay in the cache while every group reads them.
        parts = [embeddings @ pixels for pixels in features.split(PIXELS_AT_ONCE, dim=1)]
        images.append(torch.cat(parts, dim=-1))
    return torch.stack(images, dim=1)
