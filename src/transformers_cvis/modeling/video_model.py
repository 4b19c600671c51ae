"""What every video model does around its network: check inputs, batch videos of different sizes, run a stream.

B videos, T frames, F frame queries per frame, C channels, H x W pixels of the padded network input.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .frame_detector.modeling_frame_detector import SIZE_DIVISOR
from .outputs import VideoInstanceSegmentationOutput


class DetectedFrames(NamedTuple):
    """What the frame detector gives for a batch of clips."""

    frame_queries: Tensor  # (B, T, F, C), in training (layers * B, T, F, C)
    mask_features: Tensor  # (B, T, C, H / 4, W / 4)


class VideoModelMixin:
    """Precedes the `PreTrainedModel` in the bases of a video model.

    The configuration has `num_queries`, the most objects of a video, and `detector_chunk_size`, how many frames go
    through the detector at once at inference.

    Attributes:
        is_online (`bool`): whether a clip is answered without its future, so that a stream of clips never has to end.
    """

    is_online: bool

    @property
    def score_rule(self) -> str:
        """How tracks of this model are scored; every output of inference carries it."""
        return getattr(self.config, "score_rule", "max_times_quality")

    def complete_output(
        self,
        output: VideoInstanceSegmentationOutput,
        pixel_mask: Tensor | None = None,
        original_sizes: Tensor | None = None,
    ) -> VideoInstanceSegmentationOutput:
        """Add to an output of inference what the video processor needs to make tracks of it.

        Args:
            output: of one clip; it is changed in place.
            pixel_mask (`torch.Tensor` of shape `(B, H, W)`, *optional*): as given to `forward`.
            original_sizes (`torch.Tensor` of shape `(B, 2)`, *optional*): as given to `forward`.

        Returns:
            The same output, with `score_rule`, `original_sizes` and `input_sizes`.
        """
        # In the order of the fields, which is that of a tuple made of the output.
        output.original_sizes = original_sizes
        output.input_sizes = None if pixel_mask is None else _content_sizes(pixel_mask)
        output.score_rule = self.score_rule
        return output

    def detect_frames(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (N, 3, H, W) -> frame queries of the last layer (N, F, C), mask features (N, C, H / 4, W / 4)."""
        raise NotImplementedError

    @torch.no_grad()
    def stream(self, clips: Iterable[Tensor]) -> Iterator[VideoInstanceSegmentationOutput]:
        """Segment one video clip by clip; a clip is read only when its output is asked for.

        Args:
            clips: the video's consecutive clips, each of shape (1, T, 3, H, W); T may differ from clip to clip. They
                are moved to the device and dtype of the model.

        Yields:
            One output per clip, in order. Where class logits change from clip to clip (GenVIS), the class score of a
            video's query is the maximum over its outputs.

        Raises:
            ValueError: when the model is in training mode.
        """
        self._check_stream()
        state = None
        for clip in clips:
            output = self(clip.to(self.device), state=state)
            state = output.state
            yield output

    def _check_stream(self) -> None:
        if self.training:
            raise ValueError(f"{type(self).__name__} is in training mode; call `.eval()` before `.stream(...)`.")

    @property
    def most_objects(self) -> float:
        """How many objects a video can have in training."""
        return self.config.num_queries

    def check_inputs(self, pixel_values_videos: Tensor, pixel_mask: Tensor | None, labels: list[dict] | None) -> None:
        """Raise a ValueError which names what does not fit, before any work is done."""
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

    def detect(self, pixel_values_videos: Tensor, pixel_mask: Tensor | None = None) -> DetectedFrames:
        """Frame queries of the last layer and mask features of a batch of clips, at inference.

        Videos which `pixel_mask` (B, H, W; 1 where the video is) shows to be smaller than the batch run at the size
        they have alone. The border of their mask features is repeated over the rest, so that upsampling and cropping
        gives the very masks that the video gives alone.
        """
        height, width = pixel_values_videos.shape[-2:]
        sizes = videos_by_size(pixel_values_videos, pixel_mask)
        if list(sizes) == [(height, width)]:
            return self._detect_size(pixel_values_videos)
        frame_queries, mask_features, order = [], [], []
        for (own_height, own_width), videos in sizes.items():
            detected = self._detect_size(pixel_values_videos[videos, :, :, :own_height, :own_width])
            mask_features.append(repeat_border(detected.mask_features, (height // 4, width // 4)))
            frame_queries.append(detected.frame_queries)
            order += videos
        back = torch.tensor(order, device=self.device).argsort()
        return DetectedFrames(torch.cat(frame_queries)[back], torch.cat(mask_features)[back])

    def _detect_size(self, pixel_values_videos: Tensor) -> DetectedFrames:
        frames = pixel_values_videos.flatten(0, 1).split(self.config.detector_chunk_size)
        detected = [torch.cat(parts) for parts in zip(*map(self.detect_frames, frames), strict=True)]
        return DetectedFrames(*(part.unflatten(0, pixel_values_videos.shape[:2]) for part in detected))


def videos_by_size(pixel_values_videos: Tensor, pixel_mask: Tensor | None) -> dict[tuple[int, int], list[int]]:
    """Height and width that videos have alone, padded to the size divisor, and which videos of the batch they are."""
    sizes = defaultdict(list)
    for video, size in enumerate(_own_sizes(pixel_values_videos, pixel_mask)):
        sizes[size].append(video)
    return dict(sizes)


def repeat_border(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, X, Y, h, w) at a larger `size`, their last row and column repeated at the bottom and at the right."""
    bottom, right = (whole - own for whole, own in zip(size, maps.shape[-2:], strict=True))
    return F.pad(maps.flatten(0, 1), (0, right, 0, bottom), mode="replicate").unflatten(0, maps.shape[:2])


def _own_sizes(pixel_values_videos: Tensor, pixel_mask: Tensor | None) -> list[tuple[int, int]]:
    """Height and width of each video alone, padded to the size divisor."""
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


def _content_sizes(pixel_mask: Tensor) -> Tensor:
    """Height and width `(B, 2)` of what a `pixel_mask` `(B, H, W)` marks."""
    return torch.stack([pixel_mask.any(dim=2).sum(dim=1), pixel_mask.any(dim=1).sum(dim=1)], dim=1)
