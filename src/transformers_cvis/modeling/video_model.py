# SPDX-License-Identifier: Apache-2.0
"""Tasks of every video model around its network: check inputs, batch videos of different sizes, run a stream."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from ..geometry import MASK_STRIDE, SIZE_DIVISOR
from .outputs import VideoInstanceSegmentationOutput


class DetectedFrames(NamedTuple):
    """Output of the frame detector for a batch of clips."""

    frame_queries: torch.Tensor
    """`(B, T, F, C)`, in training `(layers * B, T, F, C)`."""
    mask_features: torch.Tensor
    """`(B, T, C, h, w)`."""
    hidden_states: torch.Tensor | None = None
    """Frame queries of all layers `(B, T, layers, F, C)`, if they were requested."""


class VideoModelMixin:
    """Precedes the `PreTrainedModel` in the bases of a video model.

    The configuration has `num_queries`, the most objects of a video, and `detector_chunk_size`, the number of frames
    that pass through the detector at once at inference.

    Attributes:
        is_online (`bool`): Whether the output for a clip does not depend on later clips, so that a stream of clips may
            be endless.
        state_class (`type`, *optional*): Class of the state that an online model passes from clip to clip; has a
            `batch_size`.
    """

    is_online: bool
    state_class: type | None = None

    @property
    def score_rule(self) -> str:
        """Rule by which tracks of this model are scored; every output of inference carries it."""
        return self.config.score_rule

    def complete_output(
        self,
        output: VideoInstanceSegmentationOutput,
        pixel_mask: torch.Tensor | None = None,
        original_sizes: torch.Tensor | None = None,
    ) -> VideoInstanceSegmentationOutput:
        """Add to an output of inference the values that the video processor needs to make tracks of it.

        Args:
            output: Output for one clip; it is changed in place.
            pixel_mask (`torch.Tensor` of shape `(B, H, W)`, *optional*): Argument of `forward`.
            original_sizes (`torch.Tensor` of shape `(B, 2)`, *optional*): Argument of `forward`.

        Returns:
            The same output, with `score_rule`, `original_sizes` and `input_sizes`.
        """
        # In the order of the fields, which is that of a tuple made of the output.
        output.original_sizes = original_sizes
        output.input_sizes = None if pixel_mask is None else _content_sizes(pixel_mask)
        output.score_rule = self.score_rule
        return output

    def detect_frames(self, frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Detect the objects of single frames.

        Args:
            frames: `(N, 3, H, W)`, normalised.

        Returns:
            Frame queries of the last layer `(N, F, C)`, mask features `(N, C, h, w)`, and, if a system offers them and
            they are requested, frame queries of all layers `(N, layers, F, C)`.
        """
        raise NotImplementedError

    def compile_clip_step(self, **kwargs: Any) -> None:
        """Compile the network in place with `torch.compile`, part by part, each as one graph.

        Matching, the joining of windows and the trees of HVPL's context encoder stay on the host. A model is compiled
        when it first runs, and again for frames of another size. GenVIS, whose memory grows from clip to clip, is
        compiled for 0, 1 and any other number of clips.

        Args:
            kwargs: Arguments of `torch.compile`; `fullgraph=True` unless given.
        """
        for part in self._compiled_parts():
            part.compile(**{"fullgraph": True, **kwargs})

    def _compiled_parts(self) -> list[nn.Module]:
        """Return the parts of the network that can run as one graph each."""
        raise NotImplementedError

    @torch.no_grad()
    def stream(self, clips: Iterable[torch.Tensor]) -> Iterator[VideoInstanceSegmentationOutput]:
        """Segment one video clip by clip; a clip is read only when its output is requested.

        Args:
            clips: Consecutive clips of the video, `(1, T, 3, H, W)` each; T may differ from clip to clip. They are
                moved to the device and dtype of the model.

        Yields:
            One output per clip, in order. If class logits change from clip to clip (GenVIS), the class score of a query
            is the maximum over its outputs.

        Raises:
            ValueError: The model is in training mode.
        """
        self._check_stream()
        state = None
        for clip in clips:
            output = self(clip.to(self.device), state=state, return_dict=True)
            state = output.state
            yield output

    def _check_stream(self) -> None:
        """Raise a ValueError in training mode."""
        if self.training:
            raise ValueError(f"{type(self).__name__} is in training mode; call `.eval()` before `.stream(...)`.")

    def _check_state(self, state: Any, batch_size: int) -> None:
        """Raise a ValueError if `state` is not one that the next clip of `batch_size` videos can continue."""
        if state is None:
            return
        if not self.is_online:
            raise ValueError(
                f"{type(self).__name__} takes a whole video at once and has no `state`; use `.stream(...)` to pass it "
                "in parts."
            )
        if not isinstance(state, self.state_class):
            raise ValueError(
                f"`state` must be a {self.state_class.__name__}, the `state` of the output for the clip before, got "
                f"{type(state).__name__}."
            )
        if state.batch_size != batch_size:
            raise ValueError(
                f"`state` belongs to a batch of {state.batch_size} videos, but `pixel_values_videos` holds "
                f"{batch_size}."
            )

    @property
    def most_objects(self) -> float:
        """Largest number of objects of a video in training."""
        return self.config.num_queries

    def check_inputs(
        self, pixel_values_videos: torch.Tensor, pixel_mask: torch.Tensor | None, labels: list[dict] | None
    ) -> None:
        """Check the arguments of `forward` before any computation.

        Args:
            pixel_values_videos: Argument of `forward`.
            pixel_mask: Argument of `forward`.
            labels: Argument of `forward`.

        Raises:
            ValueError: A shape, type or value is wrong; the message names it.
        """
        if pixel_values_videos.ndim != 5 or pixel_values_videos.shape[2] != 3:
            raise ValueError(
                "`pixel_values_videos` must have the shape (batch_size, num_frames, 3, height, width), got "
                f"{tuple(pixel_values_videos.shape)}."
            )
        batch_size, num_frames, _, height, width = pixel_values_videos.shape
        if not pixel_values_videos.is_floating_point():
            raise ValueError(
                f"`pixel_values_videos` must be normalised floats, got {pixel_values_videos.dtype}; use the model's "
                "video processor."
            )
        if num_frames == 0:
            raise ValueError("`pixel_values_videos` has no frames; a clip needs at least 1.")
        if height % SIZE_DIVISOR or width % SIZE_DIVISOR or not height or not width:
            raise ValueError(
                f"Height and width of `pixel_values_videos` must be multiples of {SIZE_DIVISOR}, got {height} x "
                f"{width}; the model's video processor pads to them."
            )
        if pixel_mask is not None and tuple(pixel_mask.shape) != (batch_size, height, width):
            raise ValueError(
                f"`pixel_mask` must have the shape {(batch_size, height, width)} (batch_size, height, width), got "
                f"{tuple(pixel_mask.shape)}."
            )
        if not torch.compiler.is_compiling() and not torch.isfinite(pixel_values_videos).all():
            raise ValueError("`pixel_values_videos` holds NaN or infinite values; check decoding and normalisation.")
        if labels is not None:
            self._check_labels(labels, batch_size, num_frames, height, width)

    def _check_labels(self, labels: list[dict], batch_size: int, num_frames: int, height: int, width: int) -> None:
        """Raise a ValueError if `labels` do not fit the videos or the model."""
        if len(labels) != batch_size:
            raise ValueError(f"`labels` must hold one dict per video: got {len(labels)} for {batch_size} videos.")
        for index, label in enumerate(labels):
            missing = {"class_labels", "ids", "masks"} - set(label)
            if missing:
                raise ValueError(f"`labels[{index}]` lacks {sorted(missing)}.")
            num_objects = len(label["class_labels"])
            expected = {"ids": (num_objects, num_frames), "masks": (num_objects, num_frames, height, width)}
            for name, shape in expected.items():
                if tuple(label[name].shape) != shape:
                    raise ValueError(
                        f"`labels[{index}]['{name}']` must have the shape {shape}, got {tuple(label[name].shape)}."
                    )
            unknown = [int(c) for c in label["class_labels"].unique() if not 0 <= c < self.config.num_labels]
            if unknown:
                raise ValueError(
                    f"`labels[{index}]['class_labels']` holds {unknown}, but the model knows the "
                    f"{self.config.num_labels} classes 0..{self.config.num_labels - 1} (`config.id2label`)."
                )
            if num_objects > self.most_objects:
                raise ValueError(
                    f"`labels[{index}]` has {num_objects} objects, but the model has only {self.config.num_queries} "
                    "video queries (`config.num_queries`)."
                )

    def detect(
        self, pixel_values_videos: torch.Tensor, pixel_mask: torch.Tensor | None = None, **options: Any
    ) -> DetectedFrames:
        """Detect the objects of each frame of a batch of clips, at inference.

        Videos that are smaller than the batch, according to `pixel_mask`, run at the size that they have alone. The
        border of their mask features is repeated over the rest, so that upsampling and cropping give exactly the masks
        that the video gives alone.

        Args:
            pixel_values_videos: `(B, T, 3, H, W)`, normalised.
            pixel_mask: `(B, H, W)`, 1 where a video is.
            options: Arguments of the system's `detect_frames`.
        """
        height, width = pixel_values_videos.shape[-2:]
        sizes = videos_by_size(pixel_values_videos, pixel_mask)
        if list(sizes) == [(height, width)]:
            return self._detect_size(pixel_values_videos, options)
        parts, order = [], []
        for (own_height, own_width), videos in sizes.items():
            detected = self._detect_size(pixel_values_videos[videos, :, :, :own_height, :own_width], options)
            mask_features = repeat_border(detected.mask_features, (height // MASK_STRIDE, width // MASK_STRIDE))
            parts.append(detected._replace(mask_features=mask_features))
            order += videos
        back = torch.tensor(order, device=self.device).argsort()
        return DetectedFrames(
            *(None if part[0] is None else torch.cat(part)[back] for part in zip(*parts, strict=True))
        )

    def _detect_size(self, pixel_values_videos: torch.Tensor, options: dict[str, Any]) -> DetectedFrames:
        """Detect the objects of videos of one size, some frames at a time."""
        chunks = pixel_values_videos.flatten(0, 1).split(self.config.detector_chunk_size)
        detected = [
            torch.cat(parts) for parts in zip(*(self.detect_frames(chunk, **options) for chunk in chunks), strict=True)
        ]
        return DetectedFrames(*(part.unflatten(0, pixel_values_videos.shape[:2]) for part in detected))


def videos_by_size(
    pixel_values_videos: torch.Tensor, pixel_mask: torch.Tensor | None
) -> dict[tuple[int, int], list[int]]:
    """Group the videos of a batch by the height and width that they have alone, padded to the size divisor."""
    sizes = defaultdict(list)
    for video, size in enumerate(_own_sizes(pixel_values_videos, pixel_mask)):
        sizes[size].append(video)
    return dict(sizes)


def repeat_border(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Enlarge maps `(B, X, Y, h, w)` to `size` by repeating their last row and column at the bottom and right."""
    bottom, right = (whole - own for whole, own in zip(size, maps.shape[-2:], strict=True))
    return nn.functional.pad(maps.flatten(0, 1), (0, right, 0, bottom), mode="replicate").unflatten(0, maps.shape[:2])


def _own_sizes(pixel_values_videos: torch.Tensor, pixel_mask: torch.Tensor | None) -> list[tuple[int, int]]:
    """Return the height and width of each video alone, padded to the size divisor."""
    batch_size, _, _, height, width = pixel_values_videos.shape
    if pixel_mask is None:
        return [(height, width)] * batch_size
    sizes = _content_sizes(pixel_mask).tolist()
    if any(0 in size for size in sizes):
        raise ValueError("`pixel_mask` marks a video without any valid pixel.")
    return [
        (-(-own_height // SIZE_DIVISOR) * SIZE_DIVISOR, -(-own_width // SIZE_DIVISOR) * SIZE_DIVISOR)
        for own_height, own_width in sizes
    ]


def _content_sizes(pixel_mask: torch.Tensor) -> torch.Tensor:
    """Return the height and width `(B, 2)` of the region that a `pixel_mask` `(B, H, W)` marks."""
    return torch.stack([pixel_mask.any(dim=2).sum(dim=1), pixel_mask.any(dim=1).sum(dim=1)], dim=1)
