# SPDX-License-Identifier: Apache-2.0
"""Layers of tracker and refiners: attention and feed-forward, normalised after their residual, and a convolution.

B videos, T frames, N independent elements of a batch, Q queries, S positions that they read, C channels.
"""

from typing import Literal

import torch
from torch import nn
from transformers import initialization as init

from ..layers.attention import Attention, FeedForward
from .configuration_spvis import SpvisConfig


class AttentionLayer(nn.Module):
    """Attention to `memory`, or self-attention, with residual and norm.

    Args:
        config: sizes and attention implementation.
        dropout: dropout probability of the attended values.
    """

    def __init__(self, config: SpvisConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = Attention(config, config.hidden_dim, config.num_attention_heads)
        self.dropout = nn.Dropout(dropout)
        self.layer_norm = nn.LayerNorm(config.hidden_dim)

    def forward(
        self, queries: torch.Tensor, memory: torch.Tensor | None = None, identity: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attend to the memory.

        Args:
            queries: `(N, Q, C)`.
            memory: `(N, S, C)`, or None for the queries themselves.
            identity: `(N, Q, C)`, to which the attention is added; None for the queries.

        Returns:
            `(N, Q, C)`.
        """
        memory = queries if memory is None else memory
        attended = self.dropout(self.attention(queries, memory, memory))
        return self.layer_norm((queries if identity is None else identity) + attended)


class FeedForwardLayer(nn.Module):
    """Feed-forward of each query, with residual and norm.

    Args:
        config: sizes.
        dropout: dropout probability of the result.
    """

    def __init__(self, config: SpvisConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.feed_forward = FeedForward(config.hidden_dim, config.tracker_dim_feedforward)
        self.dropout = nn.Dropout(dropout)
        self.layer_norm = nn.LayerNorm(config.hidden_dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transform each query by itself: `(..., C)` to `(..., C)`."""
        return self.layer_norm(hidden_states + self.dropout(self.feed_forward(hidden_states)))


class TimeConvolution(nn.Conv1d):
    """Convolution over the frames of each query, which keeps the number of frames.

    Args:
        hidden_dim: channels C.
        kernel_size: frames that one output reads; odd.
        padding_mode: as in `nn.Conv1d`.
    """

    def __init__(
        self, hidden_dim: int, kernel_size: int, padding_mode: Literal["zeros", "replicate"] = "zeros"
    ) -> None:
        super().__init__(hidden_dim, hidden_dim, kernel_size, padding=kernel_size // 2, padding_mode=padding_mode)

    def initialize_parameters(self) -> None:
        """Initialise Xavier-uniform with zero bias."""
        init.xavier_uniform_(self.weight)
        init.zeros_(self.bias)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Convolve over time: `(B, T, Q, C)` to `(B, T, Q, C)`."""
        batch_size, _, num_queries, _ = hidden_states.shape
        over_time = hidden_states.permute(0, 2, 3, 1).flatten(0, 1)  # (B * Q, C, T)
        return super().forward(over_time).unflatten(0, (batch_size, num_queries)).permute(0, 3, 1, 2)


def within_frames(layer: nn.Module, *tensors: torch.Tensor) -> torch.Tensor:
    """Apply `layer` to the queries of each frame: `(B, T, Q, C)` as `(B * T, Q, C)`."""
    batch_size = tensors[0].shape[0]
    return layer(*(tensor.flatten(0, 1) for tensor in tensors)).unflatten(0, (batch_size, -1))


def over_time(layer: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """Apply `layer` to the frames of each query: `(B, T, Q, C)` as `(B * Q, T, C)`."""
    batch_size = hidden_states.shape[0]
    tracks = hidden_states.transpose(1, 2).flatten(0, 1)
    return layer(tracks).unflatten(0, (batch_size, -1)).transpose(1, 2)
