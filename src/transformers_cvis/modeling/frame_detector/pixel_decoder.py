# SPDX-License-Identifier: Apache-2.0
"""Pixel decoder: backbone maps to multi-scale tokens and one fine map, by multi-scale deformable attention.

Everything is computed in the type of the weights: autocast is off here, as in Mask2Former's training.

N images, C channels, S tokens of all levels together; levels run from coarse (stride 32) to fine (stride 8).
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from ...kernels import Linear, MultiScaleDeformableAttention, PointwiseConvolution
from ...precision import at_least_float32_dtype
from ..layers.position_embedding import sine_position_embedding
from .configuration_frame_detector import FrameDetectorConfig

NUM_LEVELS = 3
NUM_POINTS = 4


class DeformableSelfAttention(nn.Module):
    """Self-attention in which a token reads a few points near its position on every level.

    Source: Deformable DETR, section 4.1.

    Args:
        embed_dim: channels of the tokens.
        num_heads: number of heads.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.sampling_offsets = Linear(embed_dim, num_heads * NUM_LEVELS * NUM_POINTS * 2)
        self.attention_weights = Linear(embed_dim, num_heads * NUM_LEVELS * NUM_POINTS)
        self.value_proj = Linear(embed_dim, embed_dim)
        self.output_proj = Linear(embed_dim, embed_dim)
        self.attention = MultiScaleDeformableAttention()

    def initialize_parameters(self) -> None:
        """Initialise each head to look in a direction of its own, with equal weights."""
        # The points of a head start one to four pixels away.
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, NUM_POINTS + 1)
        offsets = directions[:, None, None] * steps[:, None]  # (heads, 1, points, 2)
        init.zeros_(self.sampling_offsets.weight)
        init.copy_(self.sampling_offsets.bias, offsets.expand(-1, NUM_LEVELS, -1, -1).reshape(-1))
        init.zeros_(self.attention_weights.weight)
        init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            init.xavier_uniform_(projection.weight)
            init.zeros_(projection.bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        positions: torch.Tensor,
        reference_points: torch.Tensor,
        spatial_shapes: torch.Tensor,
        spatial_shapes_list: list[tuple[int, int]],
        level_start_index: torch.Tensor,
    ) -> torch.Tensor:
        """Attend from each token to points of all levels.

        Args:
            hidden_states: `(N, S, C)`.
            positions: added to the queries, not to the values; broadcast to `(N, S, C)`.
            reference_points: positions of the tokens as x, y in 0..1; broadcast to `(N, S, heads, levels, points, 2)`.
            spatial_shapes: height and width of each level, `(levels, 2)` long.
            spatial_shapes_list: the same as a list.
            level_start_index: index of the first token of each level, `(levels,)` long.

        Returns:
            The attended values, `(N, S, C)`.
        """
        batch_size, num_tokens, _ = hidden_states.shape
        queries = hidden_states + positions
        value = self.value_proj(hidden_states).view(batch_size, num_tokens, self.num_heads, -1)
        offsets = self.sampling_offsets(queries).view(batch_size, num_tokens, self.num_heads, NUM_LEVELS, NUM_POINTS, 2)
        weights = self.attention_weights(queries).view(batch_size, num_tokens, self.num_heads, -1)
        # Half precision does not resolve positions within a pixel of a wide map: compute in at least float32.
        compute_dtype = reference_points.dtype
        pixel_size = 1 / spatial_shapes.flip(-1).to(compute_dtype)  # (levels, 2), x then y
        locations = reference_points + offsets.to(compute_dtype) * pixel_size[:, None]
        weights = softmax_of_few(weights.to(compute_dtype)).view(*offsets.shape[:-1])
        attended = self.attention(
            value.to(compute_dtype),
            spatial_shapes,
            spatial_shapes_list,
            level_start_index,
            locations,
            weights,
            batch_size,
        )
        return self.output_proj(attended.to(hidden_states.dtype))


def softmax_of_few(logits: torch.Tensor) -> torch.Tensor:
    """Compute the softmax over a last axis of a dozen entries, where PyTorch's own is ten times slower on CPU."""
    if logits.device.type != "cpu":
        return logits.softmax(-1)
    powers = (logits - logits.detach().amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


class PixelDecoderEncoderLayer(GradientCheckpointingLayer):
    """Deformable self-attention and feed-forward, each with a norm after the residual sum."""

    def __init__(self, config: FrameDetectorConfig) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.self_attn = DeformableSelfAttention(config.feature_size, config.num_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.feature_size)
        self.fc1 = Linear(config.feature_size, config.encoder_feedforward_dim)
        self.fc2 = Linear(config.encoder_feedforward_dim, config.feature_size)
        self.final_layer_norm = nn.LayerNorm(config.feature_size)

    def initialize_parameters(self) -> None:
        """Initialise the feed-forward weights Xavier-uniform."""
        init.xavier_uniform_(self.fc1.weight)
        init.xavier_uniform_(self.fc2.weight)

    def forward(self, hidden_states: torch.Tensor, *geometry: Any) -> torch.Tensor:
        """Update tokens `(N, S, C)`; `geometry` holds the other arguments of `DeformableSelfAttention.forward`."""
        attended = self.self_attn(hidden_states, *geometry)
        hidden_states = self.self_attn_layer_norm(hidden_states + self._drop(attended))
        expanded = self._drop(nn.functional.relu(self.fc1(hidden_states), inplace=True))
        return self.final_layer_norm(hidden_states + self._drop(self.fc2(expanded)))

    def _drop(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(hidden_states, self.dropout, self.training)


class PixelDecoderEncoder(nn.Module):
    """Encoder layers of the pixel decoder."""

    def __init__(self, config: FrameDetectorConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([PixelDecoderEncoderLayer(config) for _ in range(config.encoder_layers)])

    def forward(self, hidden_states: torch.Tensor, *geometry: Any) -> torch.Tensor:
        """Update tokens `(N, S, C)`; `geometry` holds the other arguments of `DeformableSelfAttention.forward`."""
        for layer in self.layers:
            hidden_states = layer(hidden_states, *geometry)
        return hidden_states


class MaskProjection(PointwiseConvolution):
    """Projection of the fine map to mask features; called by the model, not by the pixel decoder."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Project a map `(N, C, h, w)` to `(N, mask channels, h, w)`, in the type of the weights."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))


class PixelDecoder(nn.Module):
    """Mask2Former's pixel decoder (Masked-attention Mask Transformer, section 4.1 and appendix).

    Args:
        config: configuration of the detector.
        feature_channels: channels of the backbone maps of strides 4, 8, 16, 32.
    """

    def __init__(self, config: FrameDetectorConfig, feature_channels: list[int]) -> None:
        super().__init__()
        dim = config.feature_size
        self.level_embed = nn.Parameter(torch.empty(NUM_LEVELS, dim))
        self.input_projections = nn.ModuleList(
            [
                nn.Sequential(PointwiseConvolution(channels, dim), nn.GroupNorm(32, dim))
                for channels in reversed(feature_channels[1:])
            ]
        )
        self.encoder = PixelDecoderEncoder(config)
        self.adapter_1 = nn.Sequential(
            PointwiseConvolution(feature_channels[0], dim, bias=False), nn.GroupNorm(32, dim)
        )
        self.layer_1 = nn.Sequential(
            nn.Conv2d(dim, dim, kernel_size=3, padding=1, bias=False), nn.GroupNorm(32, dim), nn.ReLU(inplace=True)
        )
        self.mask_projection = MaskProjection(dim, config.mask_feature_size)

    def initialize_parameters(self) -> None:
        """Initialise the level embeddings N(0, 1) and the input projections Xavier-uniform."""
        init.normal_(self.level_embed)
        for convolution, _ in self.input_projections:
            init.xavier_uniform_(convolution.weight)

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Decode backbone maps.

        Args:
            feature_maps: four maps `(N, channels, H / stride, W / stride)` of strides 4, 8, 16, 32.

        Returns:
            The three levels `(N, C, H / stride, W / stride)` of strides 32, 16, 8; and the fine map
            `(N, C, H / 4, W / 4)` that `mask_projection` turns into mask features. All have the type of the weights.
        """
        with torch.autocast(feature_maps[0].device.type, enabled=False):
            return self._decode([feature_map.to(self.level_embed.dtype) for feature_map in feature_maps])

    def _decode(self, feature_maps: list[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        finest, *others = feature_maps
        maps = [
            projection(feature_map)
            for projection, feature_map in zip(self.input_projections, reversed(others), strict=True)
        ]
        shapes = [(level.shape[2], level.shape[3]) for level in maps]
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)  # (N, S, C)

        tokens = self.encoder(tokens, *self._geometry(shapes, tokens))

        parts = tokens.split([height * width for height, width in shapes], dim=1)
        levels = [part.unflatten(1, shape).permute(0, 3, 1, 2) for part, shape in zip(parts, shapes, strict=True)]
        lateral = self.adapter_1(finest)
        upsampled = nn.functional.interpolate(levels[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        return levels, self.layer_1(lateral + upsampled)

    def _geometry(self, shapes: list[tuple[int, int]], tokens: torch.Tensor) -> tuple:
        """Return the arguments of `DeformableSelfAttention.forward` after the first."""
        device, dtype = tokens.device, tokens.dtype
        positions = torch.cat(
            [
                sine_position_embedding(height, width, tokens.shape[-1], device=device, dtype=dtype) + embedding
                for (height, width), embedding in zip(shapes, self.level_embed, strict=True)
            ]
        )
        centres = torch.cat([_pixel_centres(height, width, device, dtype) for height, width in shapes])
        reference_points = centres[:, None, None, None]  # the same for all heads, levels and points
        spatial_shapes = torch.tensor(shapes, device=device)
        starts = [0]
        for height, width in shapes[:-1]:
            starts.append(starts[-1] + height * width)
        return positions, reference_points, spatial_shapes, shapes, torch.tensor(starts, device=device)


def _pixel_centres(height: int, width: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return the pixel centres of a map as x, y in [0, 1], `(height * width, 2)`, row-major, in at least float32."""
    dtype = at_least_float32_dtype(dtype)
    y = (torch.arange(height, device=device, dtype=dtype) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=dtype) + 0.5) / width
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1).flatten(0, 1)
