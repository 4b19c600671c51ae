# SPDX-License-Identifier: Apache-2.0
"""GenVIS: video queries that are carried from clip to clip, with a memory of their past (Heo et al., CVPR 2023).

B videos (times L frame-decoder layers in training), T frames of a clip, F frame queries per frame, Q video queries,
C channels; `clips` is the number of clips in the memory.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.utils import can_return_tuple

from ...precision import at_least_float32_dtype
from ..docstrings import PREVIOUS_STATE, document_forward
from ..losses import ClipwiseMaskClassificationLoss, VideoTargets
from ..outputs import VideoInstanceSegmentationOutput, hidden_states_requested
from ..video_head.modeling_video import CvisVideoModel
from ..video_head.object_decoder import DecodedQueries, VideoHead
from .configuration_genvis import GenVisConfig


class _MemoryStorage:
    """Buffer for keys and values with spare capacity, shared by consecutive memories of one video.

    Args:
        entries: keys and values, `(2, B, Q, capacity, C)`.
        used: slots written so far, by any memory that shares this buffer.
    """

    def __init__(self, entries: torch.Tensor, used: int) -> None:
        self.entries = entries
        self.used = used


class QueryMemory:
    """Keys and values that each video query wrote after each past clip; immutable from outside.

    Appending is amortised: a new clip is written into spare capacity after the others. When that is used up, or another
    memory has written there, the clips are copied to a storage of twice the size. With a bound the oldest clip is
    dropped first, and the storage never exceeds twice the bound. Where gradients are needed, clips are concatenated.

    Args:
        storage: buffer that holds the clips.
        start: slot of the oldest clip.
        end: slot after the newest clip.
        max_clips: bound on the number of clips; None sets no bound.
    """

    def __init__(self, storage: _MemoryStorage, start: int, end: int, max_clips: int | None) -> None:
        self._storage, self._start, self._end = storage, start, end
        self.max_clips = max_clips

    @classmethod
    def empty_like(cls, video_queries: torch.Tensor, max_clips: int | None = None) -> "QueryMemory":
        """Return a memory without clips.

        Args:
            video_queries: `(B, Q, C)`, give the shape, device and dtype; the memory is in float32 at least.
            max_clips: bound on the number of clips; None sets no bound.
        """
        batch_size, num_queries, hidden_dim = video_queries.shape
        dtype = at_least_float32_dtype(video_queries.dtype)
        entries = video_queries.new_empty(2, batch_size, num_queries, 0, hidden_dim, dtype=dtype)
        return cls(_MemoryStorage(entries, used=0), 0, 0, max_clips)

    def __len__(self) -> int:
        return self._end - self._start

    @property
    def keys(self) -> torch.Tensor:
        """Keys `(B, Q, clips, C)`, oldest clip first, in float32 or a wider type."""
        return self._storage.entries[0, :, :, self._start : self._end]

    @property
    def values(self) -> torch.Tensor:
        """Values `(B, Q, clips, C)`, in the order and type of `keys`."""
        return self._storage.entries[1, :, :, self._start : self._end]

    def append(self, key: torch.Tensor, value: torch.Tensor) -> "QueryMemory":
        """Return a memory with one more clip, whose key and value are `(B, Q, C)`; this one stays as it is."""
        storage, end = self._storage, self._end
        kept = len(self) if self.max_clips is None else min(len(self), self.max_clips - 1)
        start = end - kept
        entry = torch.stack([key, value]).to(storage.entries.dtype)  # (2, B, Q, C)
        if entry.requires_grad or storage.entries.requires_grad:
            entries = torch.cat([storage.entries[:, :, :, start:end], entry.unsqueeze(3)], dim=3)
            return QueryMemory(_MemoryStorage(entries, used=kept + 1), 0, kept + 1, self.max_clips)
        # A tensor made in inference mode cannot be written outside it.
        sealed = storage.entries.is_inference() and not torch.is_inference_mode_enabled()
        if end == storage.entries.shape[3] or storage.used != end or sealed:
            shape = (*storage.entries.shape[:3], 2 * (kept + 1), storage.entries.shape[4])
            entries = storage.entries.new_empty(shape)
            entries[:, :, :, :kept] = storage.entries[:, :, :, start:end]
            storage, start, end = _MemoryStorage(entries, used=kept), 0, kept
        storage.entries[:, :, :, end] = entry
        storage.used = end + 1
        return QueryMemory(storage, start, end + 1, self.max_clips)


@dataclass(frozen=True)
class GenVisState:
    """State between two clips; it can be used more than once.

    Attributes:
        video_queries (`torch.Tensor` of shape `(B, Q, C)`): output of the last decoder layer, before the norm.
        memory (`QueryMemory`): prototypes of the clips so far.
    """

    video_queries: torch.Tensor
    memory: QueryMemory

    @property
    def batch_size(self) -> int:
        """Number of videos."""
        return len(self.video_queries)

    def append(self, step: "GenVisStep") -> "GenVisState":
        """Return the state after one more clip."""
        return GenVisState(step.decoded.last, self.memory.append(step.memory_key, step.memory_value))


class MemoryRead(NamedTuple):
    """Result of reading the memory."""

    read: torch.Tensor
    """`(B, Q, C)`."""
    weights: torch.Tensor
    """`(B, Q, clips)`, attention to each clip."""


class MemoryAttention(nn.Module):
    """Attention of each video query to the prototypes that the query of the same index wrote: one head, no scaling.

    This follows the published code; the paper's "standard cross-attention" differs. Queries of different indices never
    meet, so time and memory grow with Q x clips, not with Q x Q x clips.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.query_key_projection = nn.Linear(hidden_dim, hidden_dim)
        self.query_value_projection = nn.Linear(hidden_dim, hidden_dim)
        self.memory_key_projection = nn.Linear(hidden_dim, hidden_dim)
        self.memory_value_projection = nn.Linear(hidden_dim, hidden_dim)

    def forward(
        self, video_queries: torch.Tensor, memory_keys: torch.Tensor, memory_values: torch.Tensor
    ) -> MemoryRead:
        """Read the memory of each query.

        Args:
            video_queries: `(B, Q, C)`.
            memory_keys: `(B, Q, clips, C)`.
            memory_values: `(B, Q, clips, C)`.

        Returns:
            The reading, zero if the memory is empty, and the attention weights.
        """
        query = self.query_key_projection(video_queries)
        # Products without scaling leave the range of float16, and bfloat16 cannot tell large ones apart.
        with torch.autocast(query.device.type, enabled=False):
            query = query.to(memory_keys.dtype).unsqueeze(2)  # (B, Q, 1, C)
            weights = (query @ memory_keys.transpose(2, 3)).softmax(dim=-1)  # (B, Q, 1, clips)
            read = weights @ memory_values
        return MemoryRead(read.squeeze(2).to(video_queries.dtype), weights.squeeze(2))


class GenVisStep(NamedTuple):
    """Output of the video head for one clip."""

    decoded: DecodedQueries
    encoded_queries: torch.Tensor
    """`(B, T, F, C)`."""
    memory_key: torch.Tensor
    """`(B, Q, C)`."""
    memory_value: torch.Tensor
    """`(B, Q, C)`."""


class GenVisHead(VideoHead):
    """VITA's video head, with queries that start from those of the last clip and from the memory."""

    def __init__(self, config: GenVisConfig) -> None:
        super().__init__(config)
        self.memory_attention = MemoryAttention(config.detector_config.hidden_dim)

    def forward(
        self,
        frame_queries: torch.Tensor,
        video_queries: torch.Tensor,
        memory_keys: torch.Tensor,
        memory_values: torch.Tensor,
        all_layers: bool = False,
    ) -> GenVisStep:
        """Process one clip.

        Args:
            frame_queries: `(B, T, F, C)`.
            video_queries: `(B, Q, C)`, those of the state.
            memory_keys: `(B, Q, clips, C)`.
            memory_values: `(B, Q, clips, C)`.
            all_layers: return the decoded queries of all layers.
        """
        memory = self.memory_attention
        encoded_queries = self.encode(frame_queries)
        read = memory(video_queries, memory_keys, memory_values).read
        video_queries = video_queries + memory.query_value_projection(video_queries) + read
        decoded = self.decode(video_queries, encoded_queries, all_layers)
        prototype = decoded.normalised[-1]
        return GenVisStep(
            decoded, encoded_queries, memory.memory_key_projection(prototype), memory.memory_value_projection(prototype)
        )


class GenVisForVideoInstanceSegmentation(CvisVideoModel):
    """GenVIS, which segments a video clip by clip: online with clips of one frame, semi-online with longer ones."""

    config_class = GenVisConfig
    video_head: GenVisHead
    video_head_class = GenVisHead
    criterion_class = ClipwiseMaskClassificationLoss
    is_online = True
    state_class = GenVisState

    @staticmethod
    def criterion_settings(config: GenVisConfig) -> dict[str, Any]:
        """Return the rule that assigns newborn objects to queries."""
        return {"uvla": config.uvla}

    @can_return_tuple
    @document_forward(
        pixel_values_videos="At inference one clip of any length; with `labels` T / `config.clip_length` clips.",
        state=PREVIOUS_STATE,
        labels="Losses are summed over the clips, and gradients flow through the state from clip to clip.",
        output_embeddings="queries, mask embeddings, mask features and similarity embeddings.",
        output_hidden_states="the normed video queries `(B, Q, C)` of every layer of the object decoder.",
    )
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        state: GenVisState | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        output_embeddings: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        original_sizes: torch.Tensor | None = None,
    ) -> VideoInstanceSegmentationOutput:
        r"""Segment the next clip of each video, or compute the losses of whole videos if `labels` are given.

        Returns:
            [`VideoInstanceSegmentationOutput`], whose `state` belongs to the next call.

        Raises:
            ValueError: An input has the wrong shape, type or range, or `state` belongs to another batch.

        Example:
        ```python
        >>> import torch
        >>> from transformers import ResNetConfig
        >>> from transformers_cvis import GenVisConfig, GenVisForVideoInstanceSegmentation
        >>> from transformers_cvis.modeling.frame_detector import FrameDetectorConfig

        >>> # A small model with random weights; `from_pretrained` loads a trained one.
        >>> backbone = ResNetConfig(
        ...     layer_type="basic", hidden_sizes=[8, 8, 16, 16], out_features=["stage1", "stage2", "stage3", "stage4"]
        ... )
        >>> detector = FrameDetectorConfig(
        ...     backbone_config=backbone, feature_size=32, hidden_dim=32, encoder_layers=1, decoder_layers=3
        ... )
        >>> config = GenVisConfig(detector_config=detector, num_queries=10, encoder_layers=1, num_attention_heads=4)
        >>> model = GenVisForVideoInstanceSegmentation(config).eval()

        >>> video, state = torch.randn(1, 4, 3, 64, 96), None  # (B, T, 3, H, W)
        >>> for clip in video.split(2, dim=1):
        ...     with torch.no_grad():
        ...         output = model(clip, state=state)
        ...     state = output.state
        >>> output.class_queries_logits.shape, output.masks_queries_logits.shape
        (torch.Size([1, 10, 3]), torch.Size([1, 10, 2, 16, 24]))
        >>> len(state.memory)
        2

        ```
        """
        keeps_layers = hidden_states_requested(self.config, output_hidden_states, output_attentions)
        self.check_inputs(pixel_values_videos, pixel_mask, labels)
        self._check_state(state, len(pixel_values_videos))
        pixel_values_videos = pixel_values_videos.to(self.dtype)
        if labels is not None:
            return self._compute_loss(pixel_values_videos, labels)
        state = self._initial_state(len(pixel_values_videos)) if state is None else state
        detected = self.detect(pixel_values_videos, pixel_mask)
        memory = state.memory
        step = self.video_head(
            detected.frame_queries, state.video_queries, memory.keys, memory.values, all_layers=keeps_layers
        )
        output = self._make_output(
            detected, step.encoded_queries, step.decoded, output_embeddings, keeps_layers, state.append(step)
        )
        return self.complete_output(output, pixel_mask, original_sizes)

    def _initial_state(self, batch_size: int) -> GenVisState:
        video_queries = self.video_head.initial_queries(batch_size)
        return GenVisState(video_queries, QueryMemory.empty_like(video_queries, self.config.memory_size))

    def _compute_loss(
        self, pixel_values_videos: torch.Tensor, labels: list[dict[str, torch.Tensor]]
    ) -> VideoInstanceSegmentationOutput:
        num_frames, clip_length = pixel_values_videos.shape[1], self.config.clip_length
        if num_frames % clip_length:
            raise ValueError(
                f"Training videos must be a whole number of clips: got {num_frames} frames and a `clip_length` of "
                f"{clip_length}."
            )
        targets = VideoTargets.from_labels(labels, self.config.num_labels)
        detected, frames = self._detect_for_training(pixel_values_videos)
        loss_dict, frame_matches = self._frame_losses(detected, targets)

        state = self._initial_state(len(frames.frame_queries))
        predictions, encoded_queries, video_similarity = [], [], []
        for clip_queries in frames.frame_queries.split(clip_length, dim=1):
            memory = state.memory
            step = self.video_head(clip_queries, state.video_queries, memory.keys, memory.values, all_layers=True)
            state = state.append(step)
            predictions.append(self._layer_predictions(step.decoded))
            encoded_queries.append(step.encoded_queries)
            similarity = self.video_head.video_similarity_projection(step.decoded.normalised[-1])
            video_similarity.append(self._split_layers(similarity))
        frame_similarity = self.video_head.frame_similarity_projection(torch.cat(encoded_queries, dim=1))
        video_losses = self.criterion(
            predictions,
            frames.mask_features,
            targets,
            frame_matches,
            self._split_layers(frame_similarity),
            video_similarity,
        )
        loss_dict = {**loss_dict, **video_losses}
        return VideoInstanceSegmentationOutput(loss=sum(loss_dict.values()), loss_dict=loss_dict)
