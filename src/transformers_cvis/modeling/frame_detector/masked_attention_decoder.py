# SPDX-License-Identifier: Apache-2.0
"""Queries read the pixel decoder's levels inside the masks that they predicted so far.

N images, Q queries, C channels, S positions of one level.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from ...kernels import Linear, PointwiseConvolution, linear
from ..layers.attention import Attention, attend
from ..layers.mask_logits import MaskEmbedder, group_mask_logits
from ..layers.position_embedding import sine_position_embedding
from .configuration_frame_detector import FrameDetectorConfig
from .pixel_decoder import NUM_LEVELS


class MaskedCrossAttention(nn.Module):
    """Multi-head attention with the packed parameters of `nn.MultiheadAttention`, batch first."""

    def __init__(self, config: FrameDetectorConfig):
        super().__init__()
        embed_dim = config.hidden_dim
        self.config = config
        self.num_heads = config.num_attention_heads
        self.dropout = config.dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * embed_dim))
        self.out_proj = Linear(embed_dim, embed_dim)

    def initialize_parameters(self):
        init.xavier_uniform_(self.in_proj_weight)
        init.zeros_(self.in_proj_bias)
        init.xavier_uniform_(self.out_proj.weight)
        init.zeros_(self.out_proj.bias)

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, allowed: torch.Tensor
    ) -> torch.Tensor:
        """Shapes: queries `(N, Q, C)`, keys and values `(N, S, C)`, allowed bool `(N, Q, S)`; returns `(N, Q, C)`."""
        return self.read(queries, *self.project(keys, values), allowed)

    def project(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `(N, S, C)` as `read` takes them."""
        _, key_weight, value_weight = self.in_proj_weight.chunk(3)
        _, key_bias, value_bias = self.in_proj_bias.chunk(3)
        return linear(keys, key_weight, key_bias), linear(values, value_weight, value_bias)

    def read(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, allowed: torch.Tensor
    ) -> torch.Tensor:
        """Queries `(N, Q, C)`, or those of several groups which read the same tokens, `(groups, N, Q, C)`; projected
        keys and values `(N, S, C)`; allowed bool `(N, Q, S)` or `(groups, N, Q, S)`; returns the shape of the
        queries.
        """
        queries = linear(queries, self.in_proj_weight.chunk(3)[0], self.in_proj_bias.chunk(3)[0])
        if queries.dim() == 3:
            return self.out_proj(attend(self, queries, keys, values, allowed))
        # Image by image, as tokens need not be copied for each group then.
        images = [
            attend(self, part, *(tokens.expand(len(part), -1, -1) for tokens in pair), inside)
            for part, *pair, inside in zip(queries.unbind(1), keys, values, allowed.unbind(1), strict=True)
        ]
        return self.out_proj(torch.stack(images, dim=1))


class MaskedAttentionDecoderLayer(GradientCheckpointingLayer):
    """Masked cross-attention, self-attention, feed-forward; each with a norm after the residual sum."""

    def __init__(self, config: FrameDetectorConfig):
        super().__init__()
        dim = config.hidden_dim
        self.dropout = config.dropout
        self.activation = ACT2FN[config.activation_function]
        self.self_attn = Attention(config, dim, config.num_attention_heads, config.dropout, linear_class=Linear)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.cross_attn = MaskedCrossAttention(config)
        self.cross_attn_layer_norm = nn.LayerNorm(dim)
        self.fc1 = Linear(dim, config.dim_feedforward)
        self.fc2 = Linear(config.dim_feedforward, dim)
        self.final_layer_norm = nn.LayerNorm(dim)

    def initialize_parameters(self):
        init.xavier_uniform_(self.fc1.weight)
        init.xavier_uniform_(self.fc2.weight)

    def forward(
        self,
        hidden_states: torch.Tensor,
        query_positions: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        allowed: torch.Tensor,
        value_residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        projected = self.cross_attn.project(keys, values)
        return self.update(hidden_states, query_positions, *projected, allowed, value_residual)

    def update(
        self,
        hidden_states: torch.Tensor,
        query_positions: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        allowed: torch.Tensor,
        value_residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`forward` of projected keys and values, for queries of one or of several groups, as
        `MaskedCrossAttention.read`.
        """
        attended = self.cross_attn.read(hidden_states + query_positions, keys, values, allowed)
        hidden_states = self.cross_attn_layer_norm(hidden_states + self._drop(attended))
        placed = hidden_states + query_positions
        own_values = hidden_states if value_residual is None else hidden_states + value_residual
        attended = self.self_attn(placed, placed, own_values)
        hidden_states = self.self_attn_layer_norm(hidden_states + self._drop(attended))
        expanded = self._drop(self.activation(self.fc1(hidden_states)))
        return self.final_layer_norm(hidden_states + self._drop(self.fc2(expanded)))

    def _drop(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(hidden_states, self.dropout, self.training)


class MaskPredictor(nn.Module):
    def __init__(self, config: FrameDetectorConfig):
        super().__init__()
        self.mask_embedder = MaskEmbedder(config.hidden_dim, config.mask_feature_size)


class MaskedAttentionDecoder(nn.Module):
    def __init__(self, config: FrameDetectorConfig):
        super().__init__()
        self.layers = nn.ModuleList([MaskedAttentionDecoderLayer(config) for _ in range(config.decoder_layers - 1)])
        self.layernorm = nn.LayerNorm(config.hidden_dim)
        self.mask_predictor = MaskPredictor(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        query_positions: torch.Tensor,
        level_keys: list[torch.Tensor],
        level_values: list[torch.Tensor],
        level_mask_features: list[torch.Tensor],
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """
        Args:
            hidden_states: learned queries `(N, Q, C)`.
            query_positions: `(Q, C)`.
            level_keys, level_values: per level `(N, S, C)`.
            level_mask_features: mask features at the size of each level, `(N, mask channels, S)`.

        Returns:
            Per prediction, learned queries first: normed queries `(N, Q, C)`; and the mask embeddings `(N, Q, mask
            channels)` of all but the last, which only a caller that wants its masks computes.
        """
        queries, mask_embeddings = [self.layernorm(hidden_states)], []
        for index, layer in enumerate(self.layers):
            level = index % NUM_LEVELS
            mask_embeddings.append(self.mask_predictor.mask_embedder(queries[-1]))
            allowed = inside_masks(mask_embeddings[-1], level_mask_features[level])
            hidden_states = layer(hidden_states, query_positions, level_keys[level], level_values[level], allowed)
            queries.append(self.layernorm(hidden_states))
        return queries, mask_embeddings


@torch.no_grad()
def inside_masks(mask_embeddings: torch.Tensor, mask_features: torch.Tensor) -> torch.Tensor:
    """Where each query may look: inside its predicted mask, or everywhere if that is empty.

    Args:
        mask_embeddings: `(N, Q, C)`, or those of several groups `(groups, N, Q, C)`.
        mask_features: `(N, C, S)`

    Returns:
        bool `(N, Q, S)` or `(groups, N, Q, S)`
    """
    inside = group_mask_logits(mask_embeddings, mask_features) >= 0
    return inside | ~inside.any(-1, keepdim=True)


class TransformerModule(nn.Module):
    """The learned queries and what they read."""

    def __init__(self, config: FrameDetectorConfig):
        super().__init__()
        dim = config.hidden_dim
        self.queries_embedder = nn.Embedding(config.num_queries, dim)
        self.queries_features = nn.Embedding(config.num_queries, dim)
        project = config.feature_size != dim or config.enforce_input_projection
        self.input_projections = nn.ModuleList(
            [PointwiseConvolution(config.feature_size, dim) if project else nn.Identity() for _ in range(NUM_LEVELS)]
        )
        self.decoder = MaskedAttentionDecoder(config)
        self.level_embed = nn.Embedding(NUM_LEVELS, dim)

    def initialize_parameters(self):
        for projection in self.input_projections:
            if isinstance(projection, nn.Conv2d):
                init.xavier_uniform_(projection.weight)

    def forward(
        self, levels: list[torch.Tensor], level_mask_features: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """
        Args:
            levels: the pixel decoder's levels `(N, C, height, width)`, coarse to fine.
            level_mask_features: mask features at the size of each level, `(N, mask channels, height, width)`.

        Returns:
            As `MaskedAttentionDecoder`.
        """
        level_keys, level_values = self.read_levels(levels)
        return self.decoder(
            self.queries_features.weight.expand(levels[0].shape[0], -1, -1),
            self.queries_embedder.weight,
            level_keys,
            level_values,
            [features.flatten(2) for features in level_mask_features],
        )

    def read_levels(self, levels: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Keys and values `(N, S, C)` of each level of `forward`."""
        level_keys, level_values = [], []
        for level, projection, embedding in zip(levels, self.input_projections, self.level_embed.weight, strict=True):
            height, width = level.shape[-2:]
            values = projection(level).flatten(2).transpose(1, 2) + embedding
            positions = sine_position_embedding(
                height, width, values.shape[-1], device=values.device, dtype=values.dtype
            )
            level_values.append(values)
            level_keys.append(values + positions)
        return level_keys, level_values
