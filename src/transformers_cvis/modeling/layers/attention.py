# SPDX-License-Identifier: Apache-2.0
"""Attention and feed-forward layers of detectors, video heads and trackers.

Attention runs through the registry of transformers: `attn_implementation` of `from_pretrained` chooses "sdpa", the
default, "eager", or a function registered with `transformers.AttentionInterface`.

N images or videos, Q queries, S positions that they read, C channels.
"""

import math
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...precision import at_least_float32_dtype

DEFAULT_IMPLEMENTATION = "sdpa"  # of a layer outside a model, where transformers sets none


class AttentionLayer(Protocol):
    """A layer that `attend` can compute for."""

    config: PreTrainedConfig
    num_heads: int
    dropout: float
    training: bool


class Attention(nn.Module):
    """Multi-head attention, batch first.

    Args:
        config: configuration of the model; it names the attention implementation.
        hidden_dim: channels of queries, keys and values.
        num_heads: number of heads; the channels are divided among them.
        dropout: probability of dropping an attention weight in training.
        linear_class: class of the four projections.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        hidden_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        linear_class: type[nn.Linear] = nn.Linear,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.dropout = dropout
        self.q_proj = linear_class(hidden_dim, hidden_dim)
        self.k_proj = linear_class(hidden_dim, hidden_dim)
        self.v_proj = linear_class(hidden_dim, hidden_dim)
        self.out_proj = linear_class(hidden_dim, hidden_dim)

    def initialize_parameters(self) -> None:
        """Initialise the input projections as one Xavier-uniform matrix, like `nn.MultiheadAttention`."""
        # One matrix of 3 C rows and C columns.
        bound = math.sqrt(6 / (4 * self.q_proj.in_features))
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            init.uniform_(projection.weight, -bound, bound)
            init.zeros_(projection.bias)
        init.xavier_uniform_(self.out_proj.weight)
        init.zeros_(self.out_proj.bias)

    def forward(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend from the queries to the keys.

        Args:
            queries: `(..., N, Q, C)`.
            keys: `(..., N, S, C)`.
            values: `(..., N, S, C)`.
            attention_mask: `(..., N, Q or 1, S)`, bool (True where a query may look) or added to the scores.

        Returns:
            The attended values, `(..., N, Q, C)`.
        """
        queries, keys, values = self.q_proj(queries), self.k_proj(keys), self.v_proj(values)
        return self.out_proj(attend(self, queries, keys, values, attention_mask))


class FeedForward(nn.Module):
    """Two Linear layers with a ReLU between them."""

    def __init__(self, hidden_dim: int, dim_feedforward: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_dim, dim_feedforward)
        self.fc2 = nn.Linear(dim_feedforward, hidden_dim)

    def initialize_parameters(self) -> None:
        """Initialise both weights Xavier-uniform."""
        init.xavier_uniform_(self.fc1.weight)
        init.xavier_uniform_(self.fc2.weight)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transform each position independently, `(..., C)` to `(..., C)`."""
        return self.fc2(self.fc1(hidden_states).relu())


def attend(
    layer: AttentionLayer,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute scaled dot-product attention of projected states with the implementation that the model is set to.

    Args:
        layer: the layer; gives the implementation, the number of heads and the dropout.
        queries: `(..., N, Q, C)`.
        keys: `(..., N, S, C)`.
        values: `(..., N, S, C)`.
        attention_mask: `(..., N, Q or 1, S)`, bool (True where a query may look) or added to the scores.

    Returns:
        The attended values, `(..., N, Q, C)`.
    """
    leading = queries.shape[:-2]
    queries, keys, values = (
        states.flatten(0, -3).unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for states in (queries, keys, values)
    )
    if attention_mask is not None:
        attention_mask = attention_mask.flatten(0, -3)[:, None]
        if attention_mask.dtype != torch.bool:
            attention_mask = attention_mask.to(queries.dtype)
    implementation = layer.config._attn_implementation or DEFAULT_IMPLEMENTATION
    attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
    dropout = layer.dropout if layer.training else 0.0
    attended, _ = attention(layer, queries, keys, values, attention_mask, dropout=dropout, is_causal=False)
    return attended.flatten(2).unflatten(0, leading)


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute attention step by step, with the arguments of the functions in transformers' registry.

    Args:
        module: the layer; decides whether dropout is active.
        query: `(N, heads, Q, C / heads)`.
        key: `(N, heads, S, C / heads)`.
        value: `(N, heads, S, C / heads)`.
        attention_mask: `(N, 1 or heads, Q or 1, S)`, bool (True where a query may look) or added to the scores.
        dropout: probability of dropping an attention weight.
        scaling: factor of the scores; by default one over the square root of the channels per head.
        kwargs: ignored.

    Returns:
        The attended values `(N, Q, heads, C / heads)` and the attention weights `(N, heads, Q, S)`.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    # `BatchInvariance` replaces products of tensors with three axes, so heads join the batch here.
    scores = (query.flatten(0, 1) @ key.flatten(0, 1).mT).unflatten(0, query.shape[:2]) * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=at_least_float32_dtype(scores.dtype)).to(value.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    attended = (weights.flatten(0, 1) @ value.flatten(0, 1)).unflatten(0, query.shape[:2])
    return attended.transpose(1, 2).contiguous(), weights
