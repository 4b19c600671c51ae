# SPDX-License-Identifier: Apache-2.0
"""Offline refiners that process the whole video after the tracker: SPVIS's joint one and DVIS's temporal one.

B videos, T frames, Q queries, C channels, K classes.
"""

from typing import NamedTuple

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..layers.mask_logits import MaskEmbedder
from .configuration_spvis import SpvisConfig
from .layers import AttentionLayer, FeedForwardLayer, TimeConvolution, over_time, within_frames


class RefinedTracks(NamedTuple):
    """Predictions of the layers of a refiner for whole videos."""

    class_logits: torch.Tensor
    """`(layers, B, Q, K + 1)`."""
    mask_embeddings: torch.Tensor
    """`(layers, B, T, Q, mask channels)`."""
    queries: torch.Tensor
    """`(layers, B, T, Q, C)`, normalised."""


class RefinementCompensator(nn.Module):
    """Attention of each track over time, then blocks of self-attention and feed-forward with an outer residual.

    The blocks normalise their input, although their layers have a residual and a norm of their own.
    """

    def __init__(self, config: SpvisConfig) -> None:
        super().__init__()
        dropout = config.refiner_dropout
        self.num_repeats = config.compensator_repeats
        self.local_attn = AttentionLayer(config, dropout)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_dim)
        self.self_attn = AttentionLayer(config, dropout)
        self.feed_forward_layer_norm = nn.LayerNorm(config.hidden_dim)
        self.feed_forward = FeedForwardLayer(config, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Compensate each track: `(N, T, C)` to `(N, T, C)`."""
        hidden_states = self.local_attn(hidden_states)
        for _ in range(self.num_repeats):
            attended = self.self_attn(self.self_attn_layer_norm(hidden_states))
            hidden_states = hidden_states + self.dropout(attended)
            fed = self.feed_forward(self.feed_forward_layer_norm(hidden_states))
            hidden_states = hidden_states + self.dropout(fed)
        return hidden_states


class InteractionLayer(GradientCheckpointingLayer):
    """Attention of tracks to the frames, convolution over time, self-attention within frames; the output is gated."""

    def __init__(self, config: SpvisConfig) -> None:
        super().__init__()
        hidden_dim, dropout = config.hidden_dim, config.refiner_dropout
        self.conv_residual = config.conv_residual
        self.gated = config.gate == "sigmoid"
        self.cross_attn = AttentionLayer(config, dropout)
        self.conv1 = TimeConvolution(hidden_dim, kernel_size=3)
        self.conv2 = TimeConvolution(hidden_dim, kernel_size=1)
        self.conv_layer_norm = nn.LayerNorm(hidden_dim)
        self.self_attn = AttentionLayer(config, dropout)
        self.feed_forward = FeedForwardLayer(config, dropout)

    def forward(self, tracks: torch.Tensor, frame_queries: torch.Tensor) -> torch.Tensor:
        """Refine tracks with frame queries, both `(B, T, Q, C)`; return the same shape."""
        tracks = within_frames(self.cross_attn, tracks, frame_queries)
        moved = self.conv2(self.conv1(tracks).relu()).relu()
        tracks = self.conv_layer_norm(tracks + moved if self.conv_residual else moved)
        tracks = self.feed_forward(within_frames(self.self_attn, tracks))
        return tracks.sigmoid() if self.gated else tracks


class TemporalRefinerLayer(GradientCheckpointingLayer):
    """Attention and convolution of tracks over time, self-attention within frames, attention to the frames."""

    def __init__(self, config: SpvisConfig) -> None:
        super().__init__()
        hidden_dim = config.hidden_dim
        self.time_attn = AttentionLayer(config)
        self.conv1 = TimeConvolution(hidden_dim, kernel_size=5, padding_mode="replicate")
        self.conv2 = TimeConvolution(hidden_dim, kernel_size=3, padding_mode="replicate")
        self.conv_layer_norm = nn.LayerNorm(hidden_dim)
        self.self_attn = AttentionLayer(config)
        self.cross_attn = AttentionLayer(config)
        self.feed_forward = FeedForwardLayer(config)

    def forward(self, tracks: torch.Tensor, frame_queries: torch.Tensor) -> torch.Tensor:
        """Refine tracks with frame queries, both `(B, T, Q, C)`; return the same shape."""
        tracks = over_time(self.time_attn, tracks)
        tracks = self.conv_layer_norm(tracks + self.conv2(self.conv1(tracks).relu()))
        tracks = within_frames(self.self_attn, tracks)
        return self.feed_forward(within_frames(self.cross_attn, tracks, frame_queries))


class Refiner(nn.Module):
    """Layers over whole videos and their heads: one class per track, one mask embedding per track and frame.

    Args:
        config: sizes.
        layer_class: class of the layers, built from `config`.
        mask_embedder: head that turns track states into mask embeddings.
    """

    def __init__(self, config: SpvisConfig, layer_class: type[nn.Module], mask_embedder: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer_class(config) for _ in range(config.refiner_layers))
        self.layer_norm = nn.LayerNorm(config.hidden_dim)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        self.mask_embedder = mask_embedder
        self.frame_weight = nn.Linear(config.hidden_dim, 1)

    def forward(self, tracks: torch.Tensor, frame_queries: torch.Tensor) -> RefinedTracks:
        """Refine tracks and predict from every layer.

        Args:
            tracks: `(B, T, Q, C)`, normalised output of the tracker.
            frame_queries: `(B, T, Q, C)`, queries of each frame as the tracker encodes them without a past.
        """
        return self.predict(self.refine(tracks, frame_queries))

    def refine(self, tracks: torch.Tensor, frame_queries: torch.Tensor) -> torch.Tensor:
        """Return the tracks after every layer, `(layers, B, T, Q, C)`, before the norm; arguments as in `forward`."""
        states = []
        for layer in self.layers:
            tracks = layer(tracks, frame_queries)
            states.append(tracks)
        return torch.stack(states)

    def predict(self, states: torch.Tensor) -> RefinedTracks:
        """Predict classes and mask embeddings from the output of [`refine`]; a class comes from all frames."""
        queries = self.layer_norm(states)
        weights = self.frame_weight(queries).softmax(dim=2)  # over the frames
        class_logits = self.class_predictor((weights * queries).sum(dim=2))
        return RefinedTracks(class_logits, self.mask_embedder(queries), queries)


class TemporalRefiner(Refiner):
    """Temporal refiner of DVIS (section 3.3)."""

    def __init__(self, config: SpvisConfig) -> None:
        super().__init__(config, TemporalRefinerLayer, MaskEmbedder(config.hidden_dim, config.mask_feature_size))


class JointRefiner(Refiner):
    """SPVIS's refinement compensator and spatial interaction, combined according to `config.joint`."""

    def __init__(self, config: SpvisConfig) -> None:
        hidden_dim = config.hidden_dim
        super().__init__(
            config,
            InteractionLayer,
            nn.Sequential(
                nn.Linear(hidden_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, config.mask_feature_size)
            ),
        )
        self.joint = config.joint
        if config.joint != "interaction_only":
            self.compensator = RefinementCompensator(config)

    def refine(self, tracks: torch.Tensor, frame_queries: torch.Tensor) -> torch.Tensor:
        """Return the tracks after every layer, with those of the compensator."""
        if self.joint == "interaction_only":
            return super().refine(tracks, frame_queries)
        compensated = over_time(self.compensator, tracks)
        if self.joint == "sequential":
            return super().refine(compensated, frame_queries)
        return super().refine(tracks, frame_queries) + compensated


REFINERS = {"spvis": JointRefiner, "dvis": TemporalRefiner}
