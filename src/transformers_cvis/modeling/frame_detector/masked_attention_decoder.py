# SPDX-License-Identifier: Apache-2.0
"""Masked-attention decoder: queries read the pixel decoder's levels inside the masks predicted so far.

N images, Q queries, C channels, S positions of one level.
"""

import torch
from torch import nn
from transformers import PreTrainedConfig
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

    def __init__(self, config: FrameDetectorConfig) -> None:
        super().__init__()
        embed_dim = config.hidden_dim
        self.config: PreTrainedConfig = config
        self.num_heads = config.num_attention_heads
        self.dropout: float = config.dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * embed_dim))
        self.out_proj = Linear(embed_dim, embed_dim)

    def initialize_parameters(self) -> None:
        """Initialise the weights Xavier-uniform and the biases with zeros."""
        init.xavier_uniform_(self.in_proj_weight)
        init.zeros_(self.in_proj_bias)
        init.xavier_uniform_(self.out_proj.weight)
        init.zeros_(self.out_proj.bias)

    def forward(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, allowed: torch.Tensor
    ) -> torch.Tensor:
        """Attend from the queries to the keys.

        Args:
            queries: `(N, Q, C)`.
            keys: `(N, S, C)`.
            values: `(N, S, C)`.
            allowed: `(N, Q, S)` bool, True where a query may look.

        Returns:
            The attended values, `(N, Q, C)`.
        """
        return self.read(queries, *self.project(keys, values), allowed)

    def project(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Project keys and values `(N, S, C)` for `read`."""
        _, key_weight, value_weight = self.in_proj_weight.chunk(3)
        _, key_bias, value_bias = self.in_proj_bias.chunk(3)
        return linear(keys, key_weight, key_bias), linear(values, value_weight, value_bias)

    def read(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, allowed: torch.Tensor
    ) -> torch.Tensor:
        """Attend from queries to keys that are projected already.

        Args:
            queries: `(N, Q, C)`, or `(groups, N, Q, C)` for several groups that read the same tokens.
            keys: projected keys `(N, S, C)`.
            values: projected values `(N, S, C)`.
            allowed: `(N, Q, S)` or `(groups, N, Q, S)` bool, True where a query may look.

        Returns:
            The attended values, of the shape of `queries`.
        """
        queries = linear(queries, self.in_proj_weight.chunk(3)[0], self.in_proj_bias.chunk(3)[0])
        if queries.dim() == 3:
            return self.out_proj(attend(self, queries, keys, values, allowed))
        # Image by image, so that tokens need not be copied for each group.
        images = [
            attend(self, part, image_keys.expand(len(part), -1, -1), image_values.expand(len(part), -1, -1), inside)
            for part, image_keys, image_values, inside in zip(
                queries.unbind(1), keys, values, allowed.unbind(1), strict=True
            )
        ]
        return self.out_proj(torch.stack(images, dim=1))


class MaskedAttentionDecoderLayer(GradientCheckpointingLayer):
    """Masked cross-attention, self-attention and feed-forward, each with a norm after the residual sum."""

    def __init__(self, config: FrameDetectorConfig) -> None:
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

    def initialize_parameters(self) -> None:
        """Initialise the feed-forward weights Xavier-uniform."""
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
        """Update the queries of one group.

        Args:
            hidden_states: query states `(N, Q, C)`.
            query_positions: added to queries and keys, not to values; broadcast to `(N, Q, C)`.
            keys: `(N, S, C)`.
            values: `(N, S, C)`.
            allowed: `(N, Q, S)` bool, True where a query may look.
            value_residual: added to the values of self-attention; broadcast to `(N, Q, C)`.

        Returns:
            The updated query states, `(N, Q, C)`.
        """
        keys, values = self.cross_attn.project(keys, values)
        return self.update(hidden_states, query_positions, keys, values, allowed, value_residual)

    def update(
        self,
        hidden_states: torch.Tensor,
        query_positions: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        allowed: torch.Tensor,
        value_residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Update the queries of one or several groups from keys and values that are projected already.

        Args:
            hidden_states: query states `(N, Q, C)` or `(groups, N, Q, C)`.
            query_positions: added to queries and keys, not to values; broadcast to `hidden_states`.
            keys: projected keys `(N, S, C)`.
            values: projected values `(N, S, C)`.
            allowed: bool, True where a query may look; see `MaskedCrossAttention.read`.
            value_residual: added to the values of self-attention; broadcast to `hidden_states`.

        Returns:
            The updated query states, of the shape of `hidden_states`.
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
    """Mask head of the decoder, under Mask2Former's parameter names."""

    def __init__(self, config: FrameDetectorConfig) -> None:
        super().__init__()
        self.mask_embedder = MaskEmbedder(config.hidden_dim, config.mask_feature_size)


class MaskedAttentionDecoder(nn.Module):
    """Layers that update the queries, each from the next of the three levels: coarse to fine, then coarse again."""

    def __init__(self, config: FrameDetectorConfig) -> None:
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
        """Run all layers on the learned queries.

        Args:
            hidden_states: learned queries `(N, Q, C)`.
            query_positions: `(Q, C)`.
            level_keys: keys of each level, `(N, S, C)`.
            level_values: values of each level, `(N, S, C)`.
            level_mask_features: mask features at the size of each level, `(N, mask channels, S)`.

        Returns:
            The normed queries `(N, Q, C)` of each prediction, learned queries first; and the mask embeddings
            `(N, Q, mask channels)` of all predictions but the last. A caller that needs the masks of the last computes
            its embeddings.
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
    """Return where each query may look: inside its predicted mask, or everywhere if the mask is empty.

    Args:
        mask_embeddings: `(N, Q, C)`, or `(groups, N, Q, C)` for several groups.
        mask_features: `(N, C, S)`.

    Returns:
        `(N, Q, S)` or `(groups, N, Q, S)` bool, True where a query may look.
    """
    inside = group_mask_logits(mask_embeddings, mask_features) >= 0
    return inside | ~inside.any(-1, keepdim=True)


class TransformerModule(nn.Module):
    """Learned queries, the projections of the levels that they read, and the decoder."""

    def __init__(self, config: FrameDetectorConfig) -> None:
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

    def initialize_parameters(self) -> None:
        """Initialise the projections of the levels Xavier-uniform."""
        for projection in self.input_projections:
            if isinstance(projection, nn.Conv2d):
                init.xavier_uniform_(projection.weight)

    def forward(
        self, levels: list[torch.Tensor], level_mask_features: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Decode the learned queries from the levels of the pixel decoder.

        Args:
            levels: the pixel decoder's levels `(N, C, height, width)`, coarse to fine.
            level_mask_features: mask features at the size of each level, `(N, mask channels, height, width)`.

        Returns:
            Queries and mask embeddings, see `MaskedAttentionDecoder.forward`.
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
        """Compute the keys and values `(N, S, C)` of each level.

        Args:
            levels: the pixel decoder's levels `(N, C, height, width)`, coarse to fine.

        Returns:
            The keys of each level, and the values of each level.
        """
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
