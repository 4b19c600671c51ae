# SPDX-License-Identifier: Apache-2.0
"""Progressive tracker of SPVIS and, with another filter, referring tracker of DVIS.

A track is a query that is carried from frame to frame. In each frame it starts from the frame query matched to it and
reads all queries that the detector found there; its state in the frame before is the target of the search.

B videos, T frames, Q queries, C channels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..layers.attention import Attention, FeedForward
from ..layers.mask_logits import MaskEmbedder
from ..layers.query_matching import match_frame_queries
from .configuration_spvis import SpvisConfig
from .layers import AttentionLayer, FeedForwardLayer, TimeConvolution, within_frames


@dataclass(frozen=True)
class SpvisState:
    """State between two clips; it can be used more than once.

    Attributes:
        frame_queries (`torch.Tensor` of shape `(B, Q, C)`): queries of the last frame, in the order of the tracks.
        tracks (`torch.Tensor` of shape `(B, Q, C)`): output of the tracker's last layer in that frame, before the norm.
    """

    frame_queries: torch.Tensor
    tracks: torch.Tensor

    @property
    def batch_size(self) -> int:
        """Number of videos."""
        return len(self.tracks)


class TrackedFrames(NamedTuple):
    """Output of the tracker for a clip."""

    queries: torch.Tensor
    """`(layers, B, T, Q, C)`, normalised."""
    order: torch.Tensor
    """`(B, T, Q)` long, the frame query matched to each track."""
    state: SpvisState


class DisturbanceFilter(nn.Module):
    """Convolution over time, attention to a frame's queries, self-attention, feed-forward; normalised after each sum.

    With `filter_residual="released"` the attention is added to the convolved target, and `identity` is not used.
    """

    def __init__(self, config: SpvisConfig) -> None:
        super().__init__()
        hidden_dim, num_heads = config.hidden_dim, config.num_attention_heads
        self.adds_identity = config.filter_residual == "identity"
        self.temporal_conv = TimeConvolution(hidden_dim, kernel_size=3)
        self.cross_attn = Attention(config, hidden_dim, num_heads)
        self.self_attn = Attention(config, hidden_dim, num_heads)
        self.feed_forward = FeedForward(hidden_dim, config.filter_dim_feedforward)
        self.temporal_layer_norm = nn.LayerNorm(hidden_dim)
        self.cross_attn_layer_norm = nn.LayerNorm(hidden_dim)
        self.self_attn_layer_norm = nn.LayerNorm(hidden_dim)
        self.final_layer_norm = nn.LayerNorm(hidden_dim)

    def forward(self, identity: torch.Tensor, target: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Read the queries of a frame, all `(B, T, Q, C)`.

        Args:
            identity: states to which the attention is added.
            target: tracks of the frame before.
            memory: queries of the frame.

        Returns:
            `(B, T, Q, C)`.
        """
        target = self.temporal_layer_norm(target + self.temporal_conv(target))
        read = within_frames(self.cross_attn, target, memory, memory)
        hidden_states = self.cross_attn_layer_norm((identity if self.adds_identity else target) + read)
        attended = within_frames(self.self_attn, hidden_states, hidden_states, hidden_states)
        hidden_states = self.self_attn_layer_norm(hidden_states + attended)
        return self.final_layer_norm(hidden_states + self.feed_forward(hidden_states))


class ReferringFilter(AttentionLayer):
    """Attention of the target to a frame's queries, added to the identity (DVIS, section 3.2)."""

    def __init__(self, config: SpvisConfig) -> None:
        super().__init__(config)

    def forward(self, identity: torch.Tensor, target: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Read the queries of a frame; arguments and result as in [`DisturbanceFilter.forward`]."""
        read = super().forward(target.flatten(0, 1), memory.flatten(0, 1), identity.flatten(0, 1))
        return read.unflatten(0, target.shape[:2])


FILTERS = {"disturbance": DisturbanceFilter, "referring": ReferringFilter}


class TrackerLayer(GradientCheckpointingLayer):
    """Filter, self-attention of the tracks of a frame, feed-forward."""

    def __init__(self, config: SpvisConfig) -> None:
        super().__init__()
        self.filter = FILTERS[config.filter](config)
        self.self_attn = AttentionLayer(config)
        self.feed_forward = FeedForwardLayer(config)

    def forward(self, identity: torch.Tensor, target: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Update tracks; arguments and result as in [`DisturbanceFilter.forward`]."""
        hidden_states = self.filter(identity, target, memory)
        return self.feed_forward(within_frames(self.self_attn, hidden_states))


class Tracker(nn.Module):
    """Layers that carry tracks from one frame to the next, and heads that predict the class and mask of each."""

    def __init__(self, config: SpvisConfig) -> None:
        super().__init__()
        self.inverts_matches = config.alignment == "released"
        self.layers = nn.ModuleList(TrackerLayer(config) for _ in range(config.tracker_layers))
        self.layer_norm = nn.LayerNorm(config.hidden_dim)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        self.mask_embedder = MaskEmbedder(config.hidden_dim, config.mask_feature_size)

    def forward(
        self, frame_queries: torch.Tensor, matched_queries: torch.Tensor, tracks: torch.Tensor | None
    ) -> torch.Tensor:
        """Carry tracks into one frame.

        Args:
            frame_queries: `(B, 1, Q, C)`, queries of the frame in the detector's order.
            matched_queries: `(B, 1, Q, C)`, the same queries in the order of the tracks.
            tracks: `(B, 1, Q, C)`, output of the last layer in the frame before; None in the first frame of a video.

        Returns:
            `(layers, B, 1, Q, C)`, the tracks after every layer, before the norm.
        """
        if tracks is None:
            return self.encode_frames(frame_queries)
        hidden_states, states = matched_queries, []
        for layer in self.layers:
            hidden_states = layer(hidden_states, tracks, frame_queries)
            states.append(hidden_states)
        return torch.stack(states)

    def encode_frames(self, frame_queries: torch.Tensor) -> torch.Tensor:
        """Encode the queries of each frame without a past: `(B, T, Q, C)` to `(layers, B, T, Q, C)`."""
        hidden_states, states = frame_queries, []
        for layer in self.layers:
            hidden_states = layer(hidden_states, hidden_states, frame_queries)
            states.append(hidden_states)
        return torch.stack(states)

    def track(self, frame_queries: torch.Tensor, state: SpvisState | None = None) -> TrackedFrames:
        """Carry tracks through the frames of a clip.

        Args:
            frame_queries: `(B, T, Q, C)`.
            state: state after the clip before; None for the first clip of a video.
        """
        previous = None if state is None else state.frame_queries
        order = match_frame_queries(frame_queries, previous, self.inverts_matches)
        matched = frame_queries.take_along_dim(order.unsqueeze(3), dim=2)
        tracks = None if state is None else state.tracks.unsqueeze(1)
        outputs = []
        for frame, matched_frame in zip(frame_queries.split(1, dim=1), matched.split(1, dim=1), strict=True):
            outputs.append(self(frame, matched_frame, tracks))
            tracks = outputs[-1][-1]
        queries = self.layer_norm(torch.cat(outputs, dim=2))
        # Copies, since views would keep the tensors of the whole clip in memory.
        return TrackedFrames(queries, order, SpvisState(matched[:, -1].clone(), tracks.squeeze(1).clone()))


__all__ = ["SpvisState", "TrackedFrames", "Tracker"]
