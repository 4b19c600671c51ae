"""The video head: objects of a video from the frame queries of its frames (VITA, Heo et al. 2022, section 3).

An object encoder lets the frame queries of all frames exchange information, an object decoder reads them with a few
video queries, and each video query yields a class and a mask embedding for the whole video.

B videos (times the frame-decoder layers in training), T frames, F frame queries per frame, Q video queries, C channels.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from ..frame_detector.masked_attention_decoder import MaskEmbedder, attend

# Finite, so that a row in which every key is forbidden keeps its ordinary softmax instead of becoming NaN.
FORBIDDEN = -1000.0


class DecodedQueries(NamedTuple):
    """Output of the object decoder."""

    normalised: Tensor  # (layers, B, Q, C) after the decoder's norm; the last layer only unless all were asked for
    last: Tensor  # (B, Q, C) of the last layer, before the norm


class VideoStep(NamedTuple):
    """What the head makes of the frames of one clip."""

    encoded_queries: Tensor  # (B, T, F, C)
    decoded: DecodedQueries


class VideoAttention(nn.Module):
    """Multi-head attention, batch first."""

    def __init__(self, hidden_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(hidden_dim, hidden_dim)
        self.k_proj = nn.Linear(hidden_dim, hidden_dim)
        self.v_proj = nn.Linear(hidden_dim, hidden_dim)
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)

    def initialize_parameters(self) -> None:
        # Xavier of the three input projections taken as one matrix with 3 C rows and C columns.
        bound = math.sqrt(6 / (4 * self.q_proj.in_features))
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            init.uniform_(projection.weight, -bound, bound)
            init.zeros_(projection.bias)
        init.xavier_uniform_(self.out_proj.weight)
        init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """query (B, N, C), key and value (B, M, C), attention_mask (B, N or 1, M) additive or boolean (True = may
        attend) -> (B, N, C)"""
        query, key, value = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if attention_mask is not None and attention_mask.dtype != torch.bool:
            attention_mask = attention_mask.to(query.dtype)
        return self.out_proj(attend(query, key, value, self.num_heads, allowed=attention_mask))


class VideoFeedForward(nn.Module):
    def __init__(self, hidden_dim: int, dim_feedforward: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_dim, dim_feedforward)
        self.fc2 = nn.Linear(dim_feedforward, hidden_dim)

    def initialize_parameters(self) -> None:
        init.xavier_uniform_(self.fc1.weight)
        init.xavier_uniform_(self.fc2.weight)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.fc1(hidden_states).relu())


class ObjectEncoderLayer(GradientCheckpointingLayer):
    """Self-attention without position encoding and feed-forward, normalised after each residual."""

    def __init__(self, hidden_dim: int, num_heads: int, dim_feedforward: int):
        super().__init__()
        self.self_attn = VideoAttention(hidden_dim, num_heads)
        self.self_attn_layer_norm = nn.LayerNorm(hidden_dim)
        self.feed_forward = VideoFeedForward(hidden_dim, dim_feedforward)
        self.final_layer_norm = nn.LayerNorm(hidden_dim)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        attended = self.self_attn(hidden_states, hidden_states, hidden_states, attention_mask)
        hidden_states = self.self_attn_layer_norm(hidden_states + attended)
        return self.final_layer_norm(hidden_states + self.feed_forward(hidden_states))


class ObjectEncoder(nn.Module):
    """Frame queries of all frames attend to each other: over all frames, or in windows of frames.

    With windows every odd layer is shifted by half a window at evaluation; in training no layer is.
    """

    def __init__(self, num_layers: int, hidden_dim: int, num_heads: int, dim_feedforward: int, window_size: int):
        super().__init__()
        self.window_size = window_size
        self.layers = nn.ModuleList(
            ObjectEncoderLayer(hidden_dim, num_heads, dim_feedforward) for _ in range(num_layers)
        )

    def forward(self, frame_queries: Tensor) -> Tensor:
        """(B, T, F, C) -> (B, T, F, C)"""
        if self.window_size == 0:
            hidden_states = frame_queries.flatten(1, 2)  # (B, T * F, C)
            for layer in self.layers:
                hidden_states = layer(hidden_states)
            return hidden_states.view_as(frame_queries)
        return self._encode_windows(frame_queries)

    def _encode_windows(self, frame_queries: Tensor) -> Tensor:
        batch_size, num_frames, num_queries, hidden_dim = frame_queries.shape
        window = self.window_size
        num_windows = -(-num_frames // window)
        padding = num_windows * window - num_frames
        shift = -(-window // 2)
        hidden_states = F.pad(frame_queries, (0, 0, 0, 0, 0, padding))  # (B, windows * window, F, C)
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

    def _shifted_mask(self, valid: Tensor, shift: int, dtype: torch.dtype) -> Tensor:
        """Additive mask (windows, window, window) between the frames of each shifted window.

        Forbidden are padded frames, and in the first window the pairs of one of its first `shift` frames, which come
        from the end of the video, and one of the rest, which come from its start.
        """
        valid = valid.view(-1, self.window_size)
        allowed = valid[:, :, None] & valid[:, None, :]
        from_the_end = torch.arange(self.window_size, device=valid.device) < shift
        same_end = from_the_end[:, None] == from_the_end[None, :]
        first_window = torch.arange(len(valid), device=valid.device)[:, None, None] == 0
        allowed = allowed & (same_end | ~first_window)
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, FORBIDDEN)


def _expand_to_tokens(mask: Tensor, rows: int, columns: int) -> Tensor:
    """A mask between frames as one between their tokens: (..., n, m) -> (..., n * rows, m * columns)."""
    return mask.repeat_interleave(rows, dim=-2).repeat_interleave(columns, dim=-1)


class ObjectDecoderLayer(GradientCheckpointingLayer):
    """Cross-attention to the encoded frame queries, self-attention, feed-forward; normalised after each residual."""

    def __init__(self, hidden_dim: int, num_heads: int, dim_feedforward: int):
        super().__init__()
        self.cross_attn = VideoAttention(hidden_dim, num_heads)
        self.cross_attn_layer_norm = nn.LayerNorm(hidden_dim)
        self.self_attn = VideoAttention(hidden_dim, num_heads)
        self.self_attn_layer_norm = nn.LayerNorm(hidden_dim)
        self.feed_forward = VideoFeedForward(hidden_dim, dim_feedforward)
        self.final_layer_norm = nn.LayerNorm(hidden_dim)

    def forward(self, hidden_states: Tensor, query_position: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attended = self.cross_attn(hidden_states + query_position, key, value)
        hidden_states = self.cross_attn_layer_norm(hidden_states + attended)
        positioned = hidden_states + query_position
        attended = self.self_attn(positioned, positioned, hidden_states)
        hidden_states = self.self_attn_layer_norm(hidden_states + attended)
        return self.final_layer_norm(hidden_states + self.feed_forward(hidden_states))


class ObjectDecoder(nn.Module):
    """Video queries read the encoded frame queries of all frames."""

    def __init__(self, num_layers: int, hidden_dim: int, num_heads: int, dim_feedforward: int):
        super().__init__()
        self.layers = nn.ModuleList(
            ObjectDecoderLayer(hidden_dim, num_heads, dim_feedforward) for _ in range(num_layers)
        )
        self.layernorm = nn.LayerNorm(hidden_dim)

    def forward(
        self,
        video_queries: Tensor,
        query_position: Tensor,
        encoded_queries: Tensor,
        frame_query_position: Tensor,
        all_layers: bool = False,
    ) -> DecodedQueries:
        """video_queries (B, Q, C), query_position (Q, C), encoded_queries (B, T, F, C), frame_query_position (F, C)"""
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
        init.xavier_uniform_(self.weight)
        init.zeros_(self.bias)


class VideoHead(nn.Module):
    """Object encoder, object decoder and their heads; knows frame queries and mask features, no pixels.

    Args:
        config (`CvisVideoConfig`): sizes; the number of frame queries and the channels come from its detector.
    """

    def __init__(self, config):
        super().__init__()
        detector = config.detector_config
        hidden_dim, mask_dim = detector.hidden_dim, detector.mask_feature_size
        sizes = {
            "hidden_dim": hidden_dim,
            "num_heads": config.num_attention_heads,
            "dim_feedforward": config.dim_feedforward,
        }
        self.mask_projection = nn.Conv2d(detector.feature_size, mask_dim, kernel_size=1)
        self.input_projection = InputProjection(hidden_dim, hidden_dim)
        self.encoder = ObjectEncoder(config.encoder_layers, window_size=config.encoder_window_size, **sizes)
        self.queries_features = nn.Embedding(config.num_queries, hidden_dim)
        self.queries_embedder = nn.Embedding(config.num_queries, hidden_dim)
        self.frame_queries_embedder = nn.Embedding(detector.num_queries, hidden_dim)
        self.decoder = ObjectDecoder(config.decoder_layers, **sizes)
        self.class_predictor = nn.Linear(hidden_dim, config.num_labels + 1)
        self.mask_embedder = MaskEmbedder(hidden_dim, mask_dim)
        self.frame_similarity_projection = nn.Linear(hidden_dim, hidden_dim)
        self.video_similarity_projection = nn.Linear(hidden_dim, hidden_dim)

    def encode(self, frame_queries: Tensor) -> Tensor:
        """Frame queries of one clip, (B, T, F, C) -> (B, T, F, C), every frame informed by the others."""
        return self.encoder(self.input_projection(frame_queries))

    def initial_queries(self, batch_size: int) -> Tensor:
        """The learned video queries, (B, Q, C)."""
        return self.queries_features.weight.expand(batch_size, -1, -1)

    def decode(self, video_queries: Tensor, encoded_queries: Tensor, all_layers: bool = False) -> DecodedQueries:
        """video_queries (B, Q, C) and encoded_queries (B, T, F, C) -> decoded video queries"""
        return self.decoder(
            video_queries,
            self.queries_embedder.weight,
            encoded_queries,
            self.frame_queries_embedder.weight,
            all_layers,
        )

    def forward(self, frame_queries: Tensor, video_queries: Tensor, all_layers: bool = False) -> VideoStep:
        """frame_queries (B, T, F, C) of one clip or video, video_queries (B, Q, C) to start from"""
        encoded_queries = self.encode(frame_queries)
        return VideoStep(encoded_queries, self.decode(video_queries, encoded_queries, all_layers))


def mask_logits(mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
    """Mask logits of each query on each frame: (B, Q, C) and (B, T, C, h, w) -> (B, Q, T, h, w)."""
    height, width = mask_features.shape[-2:]
    logits = mask_embeddings[:, None] @ mask_features.flatten(3)  # (B, T, Q, h * w)
    return logits.transpose(1, 2).unflatten(-1, (height, width))
