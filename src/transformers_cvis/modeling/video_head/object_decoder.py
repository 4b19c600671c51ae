# SPDX-License-Identifier: Apache-2.0
"""Video head: objects of a video from the frame queries of its frames (VITA, Heo et al. 2022, section 3).

An object encoder lets the frame queries of all frames exchange information. An object decoder reads them with a few
video queries, each of which yields a class and a mask embedding for the whole video.

B videos (times L frame-decoder layers in training), T frames, F frame queries per frame, Q video queries, C channels.
"""

from typing import NamedTuple

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from ..layers.attention import Attention, FeedForward
from ..layers.mask_logits import MaskEmbedder
from .configuration_video import CvisVideoConfig

# Finite, so that the softmax of a row whose keys are all forbidden does not become NaN.
FORBIDDEN = -1000.0


class DecodedQueries(NamedTuple):
    """Output of the object decoder."""

    normalised: torch.Tensor
    """`(layers, B, Q, C)`, after the norm; only the last layer unless all were asked for."""
    last: torch.Tensor
    """`(B, Q, C)` of the last layer, before the norm."""


class VideoStep(NamedTuple):
    """Output of the video head for one clip or video."""

    encoded_queries: torch.Tensor
    """`(B, T, F, C)`."""
    decoded: DecodedQueries


class ObjectEncoderLayer(GradientCheckpointingLayer):
    """Self-attention without positions, then feed-forward; normalised after each residual."""

    def __init__(self, config: CvisVideoConfig) -> None:
        super().__init__()
        hidden_dim = config.detector_config.hidden_dim
        self.self_attn = Attention(config, hidden_dim, config.num_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(hidden_dim)
        self.feed_forward = FeedForward(hidden_dim, config.dim_feedforward)
        self.final_layer_norm = nn.LayerNorm(hidden_dim)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Transform tokens.

        Args:
            hidden_states: `(N, S, C)`.
            attention_mask: `(N, S, S)` or `(N, 1, S)`, boolean (True may attend) or additive; None allows all pairs.

        Returns:
            `(N, S, C)`.
        """
        attended = self.self_attn(hidden_states, hidden_states, hidden_states, attention_mask)
        hidden_states = self.self_attn_layer_norm(hidden_states + attended)
        return self.final_layer_norm(hidden_states + self.feed_forward(hidden_states))


class ObjectEncoder(nn.Module):
    """Self-attention of frame queries, over all frames or in windows of frames.

    With windows every odd layer is shifted by half a window in evaluation mode, and none in training.
    """

    def __init__(self, config: CvisVideoConfig) -> None:
        super().__init__()
        self.window_size = config.encoder_window_size
        self.layers = nn.ModuleList(ObjectEncoderLayer(config) for _ in range(config.encoder_layers))

    def forward(self, frame_queries: torch.Tensor) -> torch.Tensor:
        """Exchange information between frame queries: `(B, T, F, C)` to `(B, T, F, C)`."""
        if self.window_size == 0:
            hidden_states = frame_queries.flatten(1, 2)  # (B, T * F, C)
            for layer in self.layers:
                hidden_states = layer(hidden_states)
            return hidden_states.view_as(frame_queries)
        return self._encode_windows(frame_queries)

    def _encode_windows(self, frame_queries: torch.Tensor) -> torch.Tensor:
        batch_size, num_frames, num_queries, hidden_dim = frame_queries.shape
        window = self.window_size
        num_windows = -(-num_frames // window)
        padding = num_windows * window - num_frames
        shift = -(-window // 2)
        hidden_states = nn.functional.pad(frame_queries, (0, 0, 0, 0, 0, padding))  # (B, windows * window, F, C)
        valid = torch.arange(num_windows * window, device=frame_queries.device) < num_frames
        plain_mask = None
        if padding:
            keys = _expand_to_tokens(valid.view(num_windows, 1, window), 1, num_queries)
            plain_mask = keys.repeat(batch_size, 1, 1)  # (B * windows, 1, window * F), True = may attend
        shifted_mask = None

        for index, layer in enumerate(self.layers):
            shifted = index % 2 == 1 and not self.training
            if shifted and shifted_mask is None:
                shifted_mask = self._shifted_mask(valid.roll(shift), shift, frame_queries.dtype)
                shifted_mask = _expand_to_tokens(shifted_mask, num_queries, num_queries).repeat(batch_size, 1, 1)
            if shifted:
                hidden_states = hidden_states.roll(shift, dims=1)
            windows = hidden_states.reshape(batch_size * num_windows, window * num_queries, hidden_dim)
            windows = layer(windows, shifted_mask if shifted else plain_mask)
            hidden_states = windows.view(batch_size, num_windows * window, num_queries, hidden_dim)
            if shifted:
                hidden_states = hidden_states.roll(-shift, dims=1)
        return hidden_states[:, :num_frames]

    def _shifted_mask(self, valid: torch.Tensor, shift: int, dtype: torch.dtype) -> torch.Tensor:
        """Build the additive mask between the frames of each shifted window.

        It forbids padded frames. In the first window, whose first `shift` frames come from the end of the video, it
        also forbids the pairs of one of these and one of the other frames, which come from the start.

        Args:
            valid: `(windows * window,)`, False for padded frames.
            shift: frames by which the windows are shifted.
            dtype: dtype of the mask.

        Returns:
            `(windows, window, window)`.
        """
        valid = valid.view(-1, self.window_size)
        allowed = valid[:, :, None] & valid[:, None, :]
        from_the_end = torch.arange(self.window_size, device=valid.device) < shift
        same_end = from_the_end[:, None] == from_the_end[None, :]
        first_window = torch.arange(len(valid), device=valid.device)[:, None, None] == 0
        allowed = allowed & (same_end | ~first_window)
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, FORBIDDEN)


def _expand_to_tokens(mask: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Repeat each entry of a mask between frames for the tokens of the frames, `rows` x `columns` times."""
    return mask.repeat_interleave(rows, dim=-2).repeat_interleave(columns, dim=-1)


class ObjectDecoderLayer(GradientCheckpointingLayer):
    """Cross-attention to the encoded frame queries, self-attention, feed-forward; normalised after each residual."""

    def __init__(self, config: CvisVideoConfig) -> None:
        super().__init__()
        hidden_dim, num_heads = config.detector_config.hidden_dim, config.num_attention_heads
        self.cross_attn = Attention(config, hidden_dim, num_heads)
        self.cross_attn_layer_norm = nn.LayerNorm(hidden_dim)
        self.self_attn = Attention(config, hidden_dim, num_heads)
        self.self_attn_layer_norm = nn.LayerNorm(hidden_dim)
        self.feed_forward = FeedForward(hidden_dim, config.dim_feedforward)
        self.final_layer_norm = nn.LayerNorm(hidden_dim)

    def forward(
        self, hidden_states: torch.Tensor, query_position: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """Read tokens with video queries.

        Args:
            hidden_states: video queries `(B, Q, C)`.
            query_position: their positions `(Q, C)`.
            key: tokens with positions `(B, S, C)`.
            value: tokens `(B, S, C)`.

        Returns:
            `(B, Q, C)`.
        """
        attended = self.cross_attn(hidden_states + query_position, key, value)
        hidden_states = self.cross_attn_layer_norm(hidden_states + attended)
        positioned = hidden_states + query_position
        attended = self.self_attn(positioned, positioned, hidden_states)
        hidden_states = self.self_attn_layer_norm(hidden_states + attended)
        return self.final_layer_norm(hidden_states + self.feed_forward(hidden_states))


class ObjectDecoder(nn.Module):
    """Layers in which video queries read the encoded frame queries of all frames."""

    def __init__(self, config: CvisVideoConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ObjectDecoderLayer(config) for _ in range(config.decoder_layers))
        self.layernorm = nn.LayerNorm(config.detector_config.hidden_dim)

    def forward(
        self,
        video_queries: torch.Tensor,
        query_position: torch.Tensor,
        encoded_queries: torch.Tensor,
        frame_query_position: torch.Tensor,
        all_layers: bool = False,
    ) -> DecodedQueries:
        """Read frame queries with video queries.

        Args:
            video_queries: `(B, Q, C)`.
            query_position: `(Q, C)`.
            encoded_queries: encoded frame queries `(B, T, F, C)`.
            frame_query_position: `(F, C)`.
            all_layers: return the video queries of all layers.
        """
        key = (encoded_queries + frame_query_position).flatten(1, 2)  # (B, T * F, C)
        value = encoded_queries.flatten(1, 2)
        hidden_states = video_queries
        layers = []
        for layer in self.layers:
            hidden_states = layer(hidden_states, query_position, key, value)
            layers.append(hidden_states)
        kept = torch.stack(layers if all_layers else layers[-1:])
        return DecodedQueries(normalised=self.layernorm(kept), last=hidden_states)


class InputProjection(nn.Linear):
    """Linear layer that starts Xavier-uniform with zero bias."""

    def initialize_parameters(self) -> None:
        """Initialise weight and bias."""
        init.xavier_uniform_(self.weight)
        init.zeros_(self.bias)


class VideoHead(nn.Module):
    """Object encoder, object decoder and their heads, which read frame queries and mask features.

    Args:
        config: sizes; the number of frame queries and the channels are those of its detector.
    """

    encoder: nn.Module
    class_predictor: nn.Module

    def __init__(self, config: CvisVideoConfig) -> None:
        super().__init__()
        detector = config.detector_config
        hidden_dim, mask_dim = detector.hidden_dim, detector.mask_feature_size
        self.mask_projection = nn.Conv2d(detector.feature_size, mask_dim, kernel_size=1)
        self.input_projection = InputProjection(hidden_dim, hidden_dim)
        self.encoder = ObjectEncoder(config)
        self.queries_features = nn.Embedding(config.num_queries, hidden_dim)
        self.queries_embedder = nn.Embedding(config.num_queries, hidden_dim)
        self.frame_queries_embedder = nn.Embedding(detector.num_queries, hidden_dim)
        self.decoder = ObjectDecoder(config)
        self.class_predictor = nn.Linear(hidden_dim, config.num_labels + 1)
        self.mask_embedder = MaskEmbedder(hidden_dim, mask_dim)
        self.frame_similarity_projection = nn.Linear(hidden_dim, hidden_dim)
        self.video_similarity_projection = nn.Linear(hidden_dim, hidden_dim)

    def encode(self, frame_queries: torch.Tensor) -> torch.Tensor:
        """Exchange information between the frame queries of a clip: `(B, T, F, C)` to `(B, T, F, C)`."""
        return self.encoder(self.input_projection(frame_queries))

    def initial_queries(self, batch_size: int) -> torch.Tensor:
        """Return the learned video queries, `(B, Q, C)`."""
        return self.queries_features.weight.expand(batch_size, -1, -1)

    def decode(
        self, video_queries: torch.Tensor, encoded_queries: torch.Tensor, all_layers: bool = False
    ) -> DecodedQueries:
        """Read encoded frame queries `(B, T, F, C)` with video queries `(B, Q, C)`, which have learned positions."""
        return self.decoder(
            video_queries,
            self.queries_embedder.weight,
            encoded_queries,
            self.frame_queries_embedder.weight,
            all_layers,
        )

    def forward(self, frame_queries: torch.Tensor, video_queries: torch.Tensor, all_layers: bool = False) -> VideoStep:
        """Encode frame queries and read them.

        Args:
            frame_queries: `(B, T, F, C)` of one clip or video.
            video_queries: `(B, Q, C)` to start from.
            all_layers: return the decoded queries of all layers.
        """
        encoded_queries = self.encode(frame_queries)
        return VideoStep(encoded_queries, self.decode(video_queries, encoded_queries, all_layers))
