"""Frames in, network input out, and the network's output back to tracks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.transforms.v2 import functional as tv_functional
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    pil_torch_interpolation_mapping,
)
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from .tracks import DEFAULT_SCORE_RULE, Track, TrackAccumulator
from .video_reading import channel_axis, check_float_range, is_list_of_videos, open_video

# What the network expects of its pixels, whatever their source.
_SETTINGS_OF_IMAGES = ("do_normalize", "do_rescale", "image_mean", "image_std", "rescale_factor")


class CvisVideosKwargs(VideosKwargs, total=False):
    """
    size_divisor (`int`, *optional*):
        Height and width of the network input are padded, right and bottom, to multiples of this.
    """

    size_divisor: int


class CvisVideoProcessor(BaseVideoProcessor):
    r"""
    Prepares videos for the models of this package and turns their outputs into tracks.

    Frames are resized so that the short side is `size["shortest_edge"]` and the long side at most
    `size["longest_edge"]`, rescaled, normalised and then zero-padded, right and bottom, to the largest video of the
    batch rounded up to `size_divisor`.

    Pixels are uint8 in 0..255, or float in 0..1 (those are not rescaled again).

    Returns `pixel_values_videos` `(batch_size, num_frames, 3, height, width)` and `pixel_mask`
    `(batch_size, height, width)`, 1 where there is a pixel of the video and 0 where there is padding.
    """

    resample = PILImageResampling.BILINEAR
    image_mean = list(IMAGENET_DEFAULT_MEAN)
    image_std = list(IMAGENET_DEFAULT_STD)
    size = {"shortest_edge": 360, "longest_edge": 1333}
    default_to_square = False
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_pad = True
    do_sample_frames = False
    size_divisor = 32
    model_input_names = ["pixel_values_videos", "pixel_mask"]
    valid_kwargs = CvisVideosKwargs

    def __init__(self, **kwargs: Unpack[CvisVideosKwargs]):
        super().__init__(**kwargs)

    @classmethod
    def get_video_processor_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        """As in transformers; of an image model, which has a `preprocessor_config.json` only, mean and std are taken.

        Its sizes are made for single images, often large ones; videos take the default size of this class.
        """
        settings, kwargs = super().get_video_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "video_processor_type" not in settings:
            settings = {name: settings[name] for name in _SETTINGS_OF_IMAGES if settings.get(name) is not None}
        return settings, kwargs

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the network input, without padding, of a video of `height` x `width` pixels."""
        return _resized_size(height, width, self.size) if self.do_resize else (height, width)

    def preprocess_clip(self, frames: Sequence[np.ndarray]) -> torch.Tensor:
        """The frames of one clip, uint8 RGB `(height, width, 3)` of one size, as `pixel_values_videos` of batch size 1.

        The same numbers as calling the processor, without its checks: for the frame loop of a stream.
        """
        clip = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        clip = self._resize_and_normalize(
            clip,
            do_resize=self.do_resize,
            size=self.size,
            resample=self.resample,
            do_rescale=self.do_rescale,
            rescale_factor=self.rescale_factor,
            do_normalize=self.do_normalize,
            image_mean=self.image_mean,
            image_std=self.image_std,
        )
        if self.do_pad:
            clip = _pad(clip, _round_up(clip.shape[-2:], self.size_divisor))
        return clip[None]

    def post_process_video_instance_segmentation(
        self,
        outputs,
        target_sizes: Sequence[tuple[int, int]],
        threshold: float | None = None,
        top_k: int | None = 10,
        id2label: dict[int, str] | None = None,
        input_sizes: Sequence[tuple[int, int]] | None = None,
        score_rule: str = DEFAULT_SCORE_RULE,
    ) -> list[list[Track]]:
        """Tracks of each video of a batch, from one output or from the outputs of its consecutive clips.

        Args:
            outputs: A [`VideoInstanceSegmentationOutput`], or a list of those of consecutive clips.
            target_sizes: Height and width of each video, in pixels: the size of the tracks' masks.
            threshold (`float`, *optional*): Least score of a track; with it a query gives one track at most (see
                [`TrackAccumulator`]).
            top_k (`int`, *optional*, defaults to 10): How many (query, label) pairs of a video become tracks.
            id2label (`dict[int, str]`, *optional*): The model's `config.id2label`, for the tracks' label names.
            input_sizes: Height and width of each network input without padding; by default what this processor
                makes of `target_sizes`.
            score_rule (`str`): How tracks are scored (see [`TrackAccumulator`]); the model's `config.score_rule` if it
                has one.
        """
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        batch_size = len(outputs[0].class_queries_logits)
        if len(target_sizes) != batch_size:
            raise ValueError(f"Got {len(target_sizes)} target sizes for a batch of {batch_size} videos.")
        if input_sizes is None:
            input_sizes = [self.resized_size(*size) for size in target_sizes]
        videos = []
        for index in range(batch_size):
            accumulator = TrackAccumulator(
                tuple(target_sizes[index]),
                tuple(input_sizes[index]),
                id2label,
                threshold=threshold,
                top_k=top_k,
                score_rule=score_rule,
            )
            for output in outputs:
                accumulator.update(output.class_queries_logits[index], output.masks_queries_logits[index])
            videos.append(accumulator.tracks())
        return videos

    def preprocess(self, videos, **kwargs: Unpack[CvisVideosKwargs]) -> BatchFeature:
        """Prepare one video or a list of videos: arrays or tensors `(num_frames, height, width, 3)` or
        `(num_frames, 3, height, width)`, paths or URLs, or lists of frames.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a video cannot be read, holds no frame, or its pixels are of another dtype or out of range;
                videos of one batch have different numbers of frames.
        """
        videos = videos if is_list_of_videos(videos) else [videos]
        if not len(videos):
            raise ValueError("There is no video to prepare: the list is empty.")
        return super().preprocess([_array_or_path(video) for video in videos], **kwargs)

    def fetch_videos(self, video_url_or_urls, sample_indices_fn=None):
        """Read whole videos into memory with our own reader (the base class can only use torchcodec here)."""
        if isinstance(video_url_or_urls, (list, tuple)):
            return list(zip(*[self.fetch_videos(item, sample_indices_fn) for item in video_url_or_urls], strict=True))
        frames = open_video(video_url_or_urls)
        video = np.stack(list(frames))
        metadata = VideoMetadata(
            total_num_frames=len(video),
            fps=frames.fps,
            width=frames.size[1],
            height=frames.size[0],
            duration=len(video) / frames.fps if frames.fps else None,
        )
        metadata.frames_indices = np.arange(len(video))
        if sample_indices_fn is not None:
            metadata.frames_indices = sample_indices_fn(metadata=metadata)
            video = video[metadata.frames_indices]
        return video, metadata

    def _prepare_input_videos(self, videos, input_data_format=None, device=None, **kwargs) -> list[torch.Tensor]:
        """Each video as an RGB tensor `(num_frames, 3, height, width)`; grey is repeated, an alpha channel dropped."""
        prepared = []
        for index, video in enumerate(videos):
            name = f"Video {index}"
            video = torch.as_tensor(video, device=device)
            if input_data_format is None:
                axis = channel_axis(video.shape[1:], name)
            else:
                axis = 0 if ChannelDimension(input_data_format) == ChannelDimension.FIRST else -1
            video = video.movedim(axis + 1 if axis >= 0 else axis, 1)
            if video.numel() == 0:
                raise ValueError(f"{name} is empty: shape {tuple(video.shape)}.")
            if video.is_floating_point():
                check_float_range(float(video.min()), float(video.max()), name)
            elif video.dtype != torch.uint8:
                raise ValueError(f"{name} has dtype {video.dtype}: pixels are uint8 in 0..255 or float in 0..1.")
            prepared.append(video.expand(-1, 3, -1, -1) if video.shape[1] == 1 else video[:, :3])
        return prepared

    def _preprocess(
        self,
        videos: list[torch.Tensor],
        do_resize: bool,
        size,
        resample,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean,
        image_std,
        do_pad: bool,
        size_divisor: int,
        return_tensors=None,
        **kwargs,
    ) -> BatchFeature:
        videos = [
            self._resize_and_normalize(
                video, do_resize, size, resample, do_rescale, rescale_factor, do_normalize, image_mean, image_std
            )
            for video in videos
        ]
        if not do_pad:
            return BatchFeature(data={"pixel_values_videos": videos}, tensor_type=return_tensors)

        largest = [max(video.shape[axis] for video in videos) for axis in (-2, -1)]
        padded_size = _round_up(largest, size_divisor)
        pixel_mask = torch.zeros(len(videos), *padded_size, dtype=torch.long, device=videos[0].device)
        for mask, video in zip(pixel_mask, videos, strict=True):
            mask[: video.shape[-2], : video.shape[-1]] = 1
        videos = [_pad(video, padded_size) for video in videos]
        lengths = {len(video) for video in videos}
        if len(lengths) == 1:
            videos = torch.stack(videos)
        elif return_tensors is not None:
            raise ValueError(
                f"Videos of {', '.join(map(str, sorted(lengths)))} frames make no batch: give clips of one length, or "
                "one video at a time."
            )
        return BatchFeature(data={"pixel_values_videos": videos, "pixel_mask": pixel_mask}, tensor_type=return_tensors)

    def _resize_and_normalize(
        self,
        video: torch.Tensor,
        do_resize: bool,
        size,
        resample,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean,
        image_std,
    ) -> torch.Tensor:
        """One video `(num_frames, 3, height, width)`, still without padding; floats are in 0..1 already."""
        do_rescale = do_rescale and not video.is_floating_point()
        if do_resize:
            height, width = _resized_size(*video.shape[-2:], size)
            interpolation = pil_torch_interpolation_mapping.get(resample, resample)
            video = tv_functional.resize(video, [height, width], interpolation=interpolation, antialias=True)
        return self.rescale_and_normalize(
            video,
            do_rescale,
            rescale_factor,
            do_normalize,
            tuple(image_mean) if image_mean is not None else None,
            tuple(image_std) if image_std is not None else None,
        )


def _array_or_path(video):
    """What the base class understands of a video: an array or tensor with four axes, or a path."""
    if isinstance(video, Path):
        return str(video)
    if isinstance(video, str) or getattr(video, "ndim", None) == 4:
        return video
    return np.stack(list(open_video(video)))


def _resized_size(height: int, width: int, size) -> tuple[int, int]:
    """Short side `shortest_edge` unless the long side would pass `longest_edge`; or exactly `height` x `width`."""
    if not size.get("shortest_edge"):
        return size["height"], size["width"]
    scale = size["shortest_edge"] / min(height, width)
    if size.get("longest_edge"):
        scale = min(scale, size["longest_edge"] / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def _round_up(size: Sequence[int], divisor: int) -> tuple[int, int]:
    return tuple(-(-length // divisor) * divisor for length in size)


def _pad(video: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return nn.functional.pad(video, (0, size[1] - video.shape[-1], 0, size[0] - video.shape[-2]))
