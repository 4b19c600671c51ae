# SPDX-License-Identifier: Apache-2.0
"""GenVIS: video queries that travel from clip to clip, with a memory of what each of them was (Heo et al., CVPR 2023).

B videos (times the frame-decoder layers in training), T frames of a clip, F frame queries per frame, Q video queries,
C channels; "clips" are those in the memory.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.utils import can_return_tuple

from ...precision import at_least_float32_dtype
from ..docstrings import PREVIOUS_STATE, document_forward
from ..losses import ClipwiseMaskClassificationLoss, VideoTargets
from ..outputs import VideoInstanceSegmentationOutput, hidden_states_requested
from ..video_head.modeling_video import CvisVideoModel
from ..video_head.object_decoder import DecodedQueries, VideoHead
from .configuration_genvis import GenVisConfig


class _MemoryStorage:
    """Room for keys and values of more clips than are held; shared by consecutive memories of one video."""

    def __init__(self, entries: Tensor, used: int):
        self.entries = entries  # (2, B, Q, capacity, C): keys and values
        self.used = used  # slots written so far, by whichever memory


class QueryMemory:
    """Keys and values that each video query wrote after each past clip; immutable from outside.

    Appending is amortised: a new clip is written into spare room behind the others, and only when that is used up (or
    another memory has written there) the clips held move to a storage of twice the size. With a bound the oldest clip
    leaves first and the storage never exceeds twice the bound. Where gradients are needed the clips are concatenated.

    Attributes:
        keys (`torch.Tensor` of shape `(B, Q, clips, C)`): oldest clip first; float32 at least, whatever the model
            computes in.
        values (`torch.Tensor` of shape `(B, Q, clips, C)`)
    """

    def __init__(self, storage: _MemoryStorage, start: int, end: int, max_clips: int | None):
        self._storage, self._start, self._end = storage, start, end
        self.max_clips = max_clips

    @classmethod
    def empty_like(cls, video_queries: Tensor, max_clips: int | None = None) -> "QueryMemory":
        """A memory without clips for video queries of shape (B, Q, C)."""
        batch_size, num_queries, hidden_dim = video_queries.shape
        dtype = at_least_float32_dtype(video_queries.dtype)
        entries = video_queries.new_empty(2, batch_size, num_queries, 0, hidden_dim, dtype=dtype)
        return cls(_MemoryStorage(entries, used=0), 0, 0, max_clips)

    def __len__(self) -> int:
        return self._end - self._start

    @property
    def keys(self) -> Tensor:
        return self._storage.entries[0, :, :, self._start : self._end]

    @property
    def values(self) -> Tensor:
        return self._storage.entries[1, :, :, self._start : self._end]

    def append(self, key: Tensor, value: Tensor) -> "QueryMemory":
        """The memory with one more clip; key and value (B, Q, C)."""
        storage, end = self._storage, self._end
        kept = len(self) if self.max_clips is None else min(len(self), self.max_clips - 1)
        start = end - kept
        entry = torch.stack([key, value]).to(storage.entries.dtype)  # (2, B, Q, C)
        if entry.requires_grad or storage.entries.requires_grad:
            entries = torch.cat([storage.entries[:, :, :, start:end], entry.unsqueeze(3)], dim=3)
            return QueryMemory(_MemoryStorage(entries, used=kept + 1), 0, kept + 1, self.max_clips)
        # A tensor made in inference mode cannot be written outside of it.
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
    """What a clip hands to the next one; a state may be used more than once.

    Attributes:
        video_queries (`torch.Tensor` of shape `(B, Q, C)`): output of the last decoder layer, before the norm.
        memory (`QueryMemory`): prototypes of the clips so far.
    """

    video_queries: Tensor
    memory: QueryMemory

    @property
    def batch_size(self) -> int:
        """Number of videos."""
        return len(self.video_queries)

    def append(self, step: "GenVisStep") -> "GenVisState":
        """The state after one more clip."""
        return GenVisState(step.decoded.last, self.memory.append(step.memory_key, step.memory_value))


class MemoryRead(NamedTuple):
    read: Tensor  # (B, Q, C)
    weights: Tensor  # (B, Q, clips)


class MemoryAttention(nn.Module):
    """Each video query reads the prototypes that the query of the same index wrote: one head, no scaling.

    The published code reads this way; the paper's "standard cross-attention" differs. Indices never mix, so the product
    of all queries with all queries is not formed: time and memory are Q x clips, not Q x Q x clips.
    """

    def __init__(self, hidden_dim: int):
        super().__init__()
        self.query_key_projection = nn.Linear(hidden_dim, hidden_dim)
        self.query_value_projection = nn.Linear(hidden_dim, hidden_dim)
        self.memory_key_projection = nn.Linear(hidden_dim, hidden_dim)
        self.memory_value_projection = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, video_queries: Tensor, memory_keys: Tensor, memory_values: Tensor) -> MemoryRead:
        """video_queries (B, Q, C), memory (B, Q, clips, C) -> what was read, zero from an empty memory"""
        query = self.query_key_projection(video_queries)
        # Products without scaling leave the range of float16, and bfloat16 cannot tell large ones apart.
        with torch.autocast(query.device.type, enabled=False):
            query = query.to(memory_keys.dtype).unsqueeze(2)  # (B, Q, 1, C)
            weights = (query @ memory_keys.transpose(2, 3)).softmax(dim=-1)  # (B, Q, 1, clips)
            read = weights @ memory_values
        return MemoryRead(read.squeeze(2).to(video_queries.dtype), weights.squeeze(2))


class GenVisStep(NamedTuple):
    """What one clip gives."""

    decoded: DecodedQueries
    encoded_queries: Tensor  # (B, T, F, C)
    memory_key: Tensor  # (B, Q, C)
    memory_value: Tensor  # (B, Q, C)


class GenVisHead(VideoHead):
    """The video head of VITA, whose queries start from those of the last clip and from the memory."""

    def __init__(self, config: GenVisConfig):
        super().__init__(config)
        self.memory_attention = MemoryAttention(config.detector_config.hidden_dim)

    def forward(
        self,
        frame_queries: Tensor,
        video_queries: Tensor,
        memory_keys: Tensor,
        memory_values: Tensor,
        all_layers: bool = False,
    ) -> GenVisStep:
        """One clip: frame_queries (B, T, F, C), video_queries (B, Q, C), memory (B, Q, clips, C)."""
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
    """Segments a video clip by clip: online with clips of one frame, semi-online with longer ones."""

    config_class = GenVisConfig
    video_head_class = GenVisHead
    criterion_class = ClipwiseMaskClassificationLoss
    is_online = True
    state_class = GenVisState

    @staticmethod
    def criterion_settings(config: GenVisConfig) -> dict[str, Any]:
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
        pixel_values_videos: Tensor,
        pixel_mask: Tensor | None = None,
        state: GenVisState | None = None,
        labels: list[dict[str, Tensor]] | None = None,
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
        self, pixel_values_videos: Tensor, labels: list[dict[str, Tensor]]
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
