# SPDX-License-Identifier: Apache-2.0
"""Windows of frames: decode a video that is longer than one clip can be.

Features of frames are kept until they fill a window. Consecutive windows overlap, and the masks in the shared frames
match the queries of a window to the tracks. Features that no later window needs are freed before the next frames are
read.

B videos, T frames, Q queries, C channels, S positions of one level in one frame, H x W pixels of the padded network
input.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from transformers.utils import logging

from ..layers.query_matching import match_window_queries
from ..outputs import VideoInstanceSegmentationOutput
from ..video_model import repeat_border
from .available_memory import available_memory
from .configuration_clip_detector import ClipDetectorConfig

logger = logging.get_logger(__name__)

MEMORY_SHARE = 0.8  # of the available memory: the most that a clip may need, by estimate


class ClipFeatures(NamedTuple):
    """Features of T frames, from backbone and pixel decoder."""

    levels: list[torch.Tensor]
    """Levels of the pixel decoder, coarse to fine, `(B, T, C, height, width)` each."""
    level_mask_features: list[torch.Tensor]
    """Mask features at the size of each level, `(B, T, S, mask channels)` each."""
    mask_features: torch.Tensor
    """`(B, T, mask channels, H / 4, W / 4)`."""

    @property
    def num_frames(self) -> int:
        """Number of frames T."""
        return self.mask_features.shape[1]

    def frames(self, start: int, end: int) -> "ClipFeatures":
        """Return the features of the frames from `start` up to `end`, as views."""
        levels, level_mask_features = ([part[:, start:end] for part in parts] for parts in self[:2])
        return ClipFeatures(levels, level_mask_features, self.mask_features[:, start:end])

    def copy(self) -> "ClipFeatures":
        """Copy the tensors, so that the larger buffers they view can be freed."""
        levels, level_mask_features = ([part.clone() for part in parts] for parts in self[:2])
        return ClipFeatures(levels, level_mask_features, self.mask_features.clone())

    @staticmethod
    def join(parts: Sequence["ClipFeatures"]) -> "ClipFeatures":
        """Join the features of consecutive frames."""
        if len(parts) == 1:
            return parts[0]
        levels, level_mask_features, mask_features = zip(*parts, strict=True)
        joined_levels, joined_level_mask_features = (
            [torch.cat(part, dim=1) for part in zip(*lists, strict=True)] for lists in (levels, level_mask_features)
        )
        return ClipFeatures(joined_levels, joined_level_mask_features, torch.cat(mask_features, dim=1))


class Window(NamedTuple):
    """Query predictions for one window, sorted by track."""

    class_logits: torch.Tensor
    """`(B, Q, K + 1)`, no-object last."""
    queries: torch.Tensor
    """Normed queries of the last layer, `(B, Q, C)`."""
    mask_embeddings: torch.Tensor
    """`(B, Q, mask channels)`."""
    mask_features: torch.Tensor
    """`(B, T, mask channels, H / 4, W / 4)`, without the frames that the window before covers."""
    hidden_states: tuple[torch.Tensor, ...] | None = None
    """Normed queries of every layer, `(B, Q, C)` each, if they were requested."""

    @property
    def num_frames(self) -> int:
        """Number of frames T."""
        return self.mask_features.shape[1]


class ClipNetwork(Protocol):
    """Methods of a `ClipDetector` that decode windows."""

    config: ClipDetectorConfig

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""

    @property
    def group_widths(self) -> list[int]:
        """Number of queries of each query group."""

    def read_frames(self, pixel_values_videos: torch.Tensor) -> ClipFeatures:
        """Compute the features of each frame."""

    def decode(self, features: ClipFeatures) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Compute normed queries and mask embeddings."""

    def classify(self, queries: torch.Tensor) -> torch.Tensor:
        """Compute class logits."""

    def embed_masks(self, queries: torch.Tensor) -> torch.Tensor:
        """Compute mask embeddings."""

    def clip_memory(self, num_frames: int, height: int, width: int, batch_size: int = 1) -> int:
        """Estimate the peak memory of a clip, in bytes."""

    def mask_memory(self, num_frames: int, height: int, width: int, batch_size: int) -> int:
        """Return the size of the mask logits, in bytes."""


class WindowedDecoder:
    """Decode consecutive clips window by window; each window continues the tracks of the window before.

    Args:
        model: reads the frames and decodes the windows.
        num_frames: frames of all clips together, or None if unknown.
        keep_hidden_states: keep the queries of every layer in the windows.
    """

    def __init__(self, model: ClipNetwork, num_frames: int | None = None, keep_hidden_states: bool = False) -> None:
        self.model, self.num_frames, self.keep_hidden_states = model, num_frames, keep_hidden_states
        self.length = self.overlap = 0  # frames of a window, and frames that it shares with the next one
        self._waiting: list[ClipFeatures] = []
        self._tracks: tuple[torch.Tensor, torch.Tensor] | None = None  # queries and mask embeddings of the last window

    def decode(self, clips: Iterable[torch.Tensor]) -> Iterator[Window]:
        """Decode clips `(B, T, 3, H, W)` of any length.

        Args:
            clips: consecutive clips.

        Yields:
            Consecutive windows.

        Raises:
            MemoryError: not even two frames fit into the available memory.
        """
        model = self.model
        for clip in clips:
            batch_size, _, _, height, width = clip.shape
            if not self.length:
                self.length = window_length(model, batch_size, height, width, self.num_frames)
                self.overlap = min(model.config.window_overlap, self.length // 2)
            for frames in clip.split(max(1, model.config.detector_chunk_size // batch_size), dim=1):
                self._waiting.append(model.read_frames(frames.to(model.device, model.dtype)))
                while self._num_waiting > self.length:
                    if self._tracks is None:
                        warn_of_windows(model, self.length, self.overlap, height, width)
                    yield self._decode_waiting()
        if self._waiting:
            yield self._decode_waiting()

    @property
    def _num_waiting(self) -> int:
        return sum(features.num_frames for features in self._waiting)

    def _decode_waiting(self) -> Window:
        """Decode a window of the waiting frames, and keep those that the next window needs."""
        features = ClipFeatures.join(self._waiting)
        self._waiting.clear()
        if features.num_frames <= self.length:
            return self._decode_window(features)
        window = self._decode_window(features.frames(0, self.length))
        self._waiting.append(features.frames(self.length - self.overlap, features.num_frames).copy())
        self._tracks = window.queries, window.mask_embeddings
        return window

    def _decode_window(self, features: ClipFeatures) -> Window:
        model = self.model
        layers = model.decode(features)[0]
        queries = layers[-1]
        mask_embeddings = model.embed_masks(queries)
        layers = layers if self.keep_hidden_states else []
        parts = [model.classify(queries), queries, mask_embeddings, *layers]
        mask_features = features.mask_features
        if self._tracks is not None:
            tracks, track_embeddings = self._tracks
            shared = features.level_mask_features[-1][:, : self.overlap].flatten(1, 2).transpose(1, 2)
            order = match_window_queries(
                queries, mask_embeddings @ shared, tracks, track_embeddings @ shared, model.group_widths
            )
            parts = [part.take_along_dim(order.unsqueeze(2), dim=1) for part in parts]
            mask_features = mask_features[:, self.overlap :]
        class_logits, queries, mask_embeddings, *layers = parts
        return Window(
            class_logits, queries, mask_embeddings, mask_features, tuple(layers) if self.keep_hidden_states else None
        )


def window_length(model: ClipNetwork, batch_size: int, height: int, width: int, num_frames: int | None) -> int:
    """Return how many frames one window can have, given the configuration and the available memory.

    Args:
        model: estimates the memory that a clip needs.
        batch_size: videos that are decoded at once.
        height: height of the padded frames, in pixels.
        width: width of the padded frames, in pixels.
        num_frames: frames of the whole video, if its masks are returned at once; None for a stream.

    Raises:
        MemoryError: not even two frames fit into the available memory.
    """
    config = model.config
    longest, available = config.max_clip_frames, available_memory(model.device)
    if available is None:
        return longest
    fixed, with_one = (model.clip_memory(count, height, width, batch_size) for count in (0, 1))
    per_frame, advice = with_one - fixed, ""
    if num_frames is not None:
        fixed += model.mask_memory(num_frames, height, width, batch_size)
        advice = ", or use `.stream(...)`, which returns the masks part by part"
    wanted = longest if num_frames is None else min(longest, num_frames)
    fitting = int((MEMORY_SHARE * available - fixed) // per_frame)
    if fitting >= wanted:
        return longest
    least = min(2, wanted)
    if fitting < least:
        need = fixed + least * per_frame
        raise MemoryError(
            f"A clip of {least} frames of {height} x {width} needs about {_gigabytes(need)}, but only "
            f"{_gigabytes(available)} are available on {model.device}. Use smaller frames or fewer videos at once, or "
            f"lower `config.detector_chunk_size` ({config.detector_chunk_size}){advice}."
        )
    return fitting


def warn_of_windows(model: ClipNetwork, length: int, overlap: int, height: int, width: int) -> None:
    """Warn once that a video is processed in windows, and explain why.

    Args:
        model: estimates the memory that a clip needs.
        length: frames of a window.
        overlap: frames that consecutive windows share.
        height: height of the padded frames, in pixels.
        width: width of the padded frames, in pixels.
    """
    configured = model.config.max_clip_frames
    if length == configured:
        reason = f"more than `config.max_clip_frames` ({configured}) frames"
        remedy = "Raise `config.max_clip_frames` to process more frames as one clip, as published."
    else:
        need = model.clip_memory(configured, height, width)
        reason = (
            f"frames of {height} x {width}, of which only {length} fit into the available memory at once "
            f"(`config.max_clip_frames`, {configured}, would need {_gigabytes(need)})"
        )
        remedy = "Use smaller frames or a device with more memory for longer clips."
    logger.warning_once(
        f"The video has {reason}. It is processed in windows of {length} frames that share {overlap} "
        f"(`config.window_overlap`), and tracks are joined from window to window. {remedy}"
    )


def answer_clips(
    windows: Iterable[Window], lengths: deque[int], answer: Callable[[Window], VideoInstanceSegmentationOutput]
) -> Iterator[VideoInstanceSegmentationOutput]:
    """Answer each clip of a stream as soon as all of its frames are decoded.

    Args:
        windows: consecutive windows.
        lengths: frames of each clip that is read and not answered yet. It grows while windows are decoded; answered
            clips are removed.
        answer: builds the output of a window, or of a part of one.

    Yields:
        The output of each clip.
    """
    decoded: deque[Window] = deque()
    for window in windows:
        decoded.append(window)
        del window
        while lengths and lengths[0] <= sum(part.num_frames for part in decoded):
            yield join_answers([answer(part) for part in _take_frames(decoded, lengths.popleft())])


def join_answers(answers: Sequence[VideoInstanceSegmentationOutput]) -> VideoInstanceSegmentationOutput:
    """Join outputs for consecutive frames; class logits become the mean over the frames."""
    if len(answers) == 1:
        return answers[0]
    masks = torch.cat([answer.masks_queries_logits for answer in answers], dim=2)
    weighted = [answer.masks_queries_logits.shape[2] * answer.class_queries_logits for answer in answers]
    return VideoInstanceSegmentationOutput(
        class_queries_logits=sum(weighted) / masks.shape[2], masks_queries_logits=masks
    )


def batch_outputs(
    outputs: Sequence[VideoInstanceSegmentationOutput], order: torch.Tensor, mask_size: tuple[int, int]
) -> VideoInstanceSegmentationOutput:
    """Join outputs of videos of different sizes to the output of one batch.

    Args:
        outputs: output of the videos of each size.
        order: `(B,)` long: for each video of the batch, its index among the videos of all `outputs`.
        mask_size: height and width of the masks of the batch.
    """
    batched = VideoInstanceSegmentationOutput()
    for name in outputs[0]:
        parts = [output[name] for output in outputs]
        if name == "hidden_states":
            batched[name] = tuple(torch.cat(layer)[order] for layer in zip(*parts, strict=True))
            continue
        if name in ("masks_queries_logits", "mask_features"):
            parts = [repeat_border(part, mask_size) for part in parts]
        batched[name] = torch.cat(parts)[order]
    return batched


def _take_frames(windows: deque[Window], num_frames: int) -> list[Window]:
    """Remove the first `num_frames` frames from consecutive windows and return them."""
    taken = []
    while num_frames:
        window = windows.popleft()
        count = min(num_frames, window.num_frames)
        taken.append(window._replace(mask_features=window.mask_features[:, :count]))
        if count < window.num_frames:
            windows.appendleft(window._replace(mask_features=window.mask_features[:, count:]))
        num_frames -= count
    return taken


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
