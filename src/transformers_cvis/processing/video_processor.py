# SPDX-License-Identifier: Apache-2.0
"""Video processor: turns frames into network input, and the outputs of a model into tracks."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torchvision.transforms.v2 import functional as tv_functional
from transformers import AutoVideoProcessor
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

from .post_processing import TrackPostProcessing
from .sizes import SIZE_DIVISOR, padded_size, resized_size
from .video_reading import channel_axis, check_float_range, is_list_of_videos, open_video

# Files that a video processor is made from; the second one is that of an image model.
PROCESSOR_FILES = ("video_preprocessor_config.json", "preprocessor_config.json")
# Settings that belong to the pixels of a network, whether they come from images or videos.
_SETTINGS_OF_IMAGES = ("do_normalize", "do_rescale", "image_mean", "image_std", "rescale_factor")


class CvisVideosKwargs(VideosKwargs, total=False):
    """Settings of [`CvisVideoProcessor`] beyond those that every video processor has.

    size_divisor (`int`, *optional*):
        Height and width of the network input are padded, right and bottom, to multiples of this.
    """

    size_divisor: int


class CvisVideoProcessor(TrackPostProcessing, BaseVideoProcessor):
    r"""Prepares videos for the models of this package and turns their outputs into tracks.

    Frames are resized so that the short side is `size["shortest_edge"]` and the long side at most
    `size["longest_edge"]`, rescaled, normalised and then zero-padded, right and bottom, to the largest video of the
    batch rounded up to `size_divisor`. Pixels are uint8 in 0..255, or float in 0..1, which are not rescaled again.

    A call returns the arguments of a model:

    - `pixel_values_videos`: `(batch_size, num_frames, 3, height, width)`, float32;
    - `pixel_mask`: `(batch_size, height, width)`, int64, 1 where a video is and 0 where it is padded;
    - `original_sizes`: `(batch_size, 2)`, int64, height and width of each video before the resize, in pixels.

    Example:
    ```python
    >>> import numpy as np
    >>> from transformers_cvis import CvisVideoProcessor

    >>> processor = CvisVideoProcessor(size={"shortest_edge": 48, "longest_edge": 96})
    >>> inputs = processor(np.zeros((4, 60, 100, 3), np.uint8), return_tensors="pt")
    >>> {name: tuple(value.shape) for name, value in inputs.items()}
    {'pixel_values_videos': (1, 4, 3, 64, 96), 'pixel_mask': (1, 64, 96), 'original_sizes': (1, 2)}

    ```
    """

    resample = PILImageResampling.BILINEAR
    image_mean: ClassVar[list[float]] = list(IMAGENET_DEFAULT_MEAN)
    image_std: ClassVar[list[float]] = list(IMAGENET_DEFAULT_STD)
    size: ClassVar[dict[str, int]] = {"shortest_edge": 360, "longest_edge": 1333}
    default_to_square = False
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_pad = True
    do_sample_frames = False
    size_divisor = SIZE_DIVISOR
    model_input_names: ClassVar[list[str]] = ["pixel_values_videos", "pixel_mask", "original_sizes"]
    valid_kwargs = CvisVideosKwargs

    def __init__(self, **kwargs: Unpack[CvisVideosKwargs]) -> None:
        super().__init__(**kwargs)

    @classmethod
    def get_video_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict, dict]:
        """Read the settings of a saved processor.

        An image model has only a `preprocessor_config.json`. Its mean, standard deviation and rescaling are taken; its
        sizes, which are made for single images, are replaced by those of this class.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): folder, or repository on the Hub.
            kwargs: as of `from_pretrained`.

        Returns:
            `tuple[dict, dict]`: the settings, and the keyword arguments that are left.
        """
        settings, kwargs = super().get_video_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "video_processor_type" not in settings:
            settings = {name: settings[name] for name in _SETTINGS_OF_IMAGES if settings.get(name) is not None}
        return settings, kwargs

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size of the network input, without padding, of a video.

        Args:
            height (`int`): height of the video's frames, in pixels.
            width (`int`): width of the video's frames, in pixels.

        Returns:
            `tuple[int, int]`: height and width, in pixels.
        """
        return _size_after_resize(height, width, self.size) if self.do_resize else (height, width)

    def preprocess_clip(self, frames: Sequence[np.ndarray]) -> torch.Tensor:
        """Prepare one clip of a stream. The result equals that of a call of the processor, without its checks.

        Args:
            frames (`Sequence[np.ndarray]`): uint8 RGB frames `(height, width, 3)` of one size.

        Returns:
            `torch.Tensor`: `pixel_values_videos` `(1, num_frames, 3, height, width)`, float32.
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
            clip = _pad(clip, padded_size(clip.shape[-2:], self.size_divisor))
        return clip[None]

    def preprocess(self, videos: Any, **kwargs: Unpack[CvisVideosKwargs]) -> BatchFeature:
        """Prepare one video or a list of videos.

        Args:
            videos: arrays or tensors `(num_frames, height, width, 3)` or `(num_frames, 3, height, width)`, paths or
                URLs, or lists of frames.
            kwargs: settings for this call, in place of those of the processor.

        Returns:
            `BatchFeature`: `pixel_values_videos`, `pixel_mask` and `original_sizes` (see the class).

        Raises:
            FileNotFoundError: a path does not exist.
            ValueError: a video cannot be read or holds no frame, its pixels are of another dtype or out of range, or
                the videos of a batch have different numbers of frames.
        """
        videos = videos if is_list_of_videos(videos) else [videos]
        if not len(videos):
            raise ValueError("No video to prepare: the list is empty. Give at least one.")
        return super().preprocess([_array_or_path(video) for video in videos], **kwargs)

    def fetch_videos(
        self, video_url_or_urls: Any, sample_indices_fn: Callable[..., np.ndarray] | None = None
    ) -> tuple[Any, Any] | list:
        """Read whole videos into memory with the reader of this package; the base class can only use torchcodec.

        Args:
            video_url_or_urls (`str`, or nested `list` of them): paths or URLs.
            sample_indices_fn (`Callable`, *optional*): chooses the frames to keep, from the metadata of a video.

        Returns:
            Frames `(num_frames, height, width, 3)`, uint8, and the video's metadata; lists of both for a list.
        """
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

    def _prepare_input_videos(
        self,
        videos: Sequence[Any],
        input_data_format: str | ChannelDimension | None = None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> list[torch.Tensor]:
        """Return each video as an RGB tensor `(num_frames, 3, height, width)`; repeat grey, drop an alpha channel."""
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
        size: Any,
        resample: Any,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Sequence[float] | None,
        image_std: Sequence[float] | None,
        do_pad: bool,
        size_divisor: int,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        original_sizes = torch.tensor([video.shape[-2:] for video in videos], device=videos[0].device)
        videos = [
            self._resize_and_normalize(
                video,
                do_resize=do_resize,
                size=size,
                resample=resample,
                do_rescale=do_rescale,
                rescale_factor=rescale_factor,
                do_normalize=do_normalize,
                image_mean=image_mean,
                image_std=image_std,
            )
            for video in videos
        ]
        if not do_pad:
            data = {"pixel_values_videos": videos, "original_sizes": original_sizes}
            return BatchFeature(data=data, tensor_type=return_tensors)

        largest = [max(video.shape[axis] for video in videos) for axis in (-2, -1)]
        batch_size = padded_size(largest, size_divisor)
        pixel_mask = torch.zeros(len(videos), *batch_size, dtype=torch.long, device=videos[0].device)
        for mask, video in zip(pixel_mask, videos, strict=True):
            mask[: video.shape[-2], : video.shape[-1]] = 1
        videos = [_pad(video, batch_size) for video in videos]
        lengths = {len(video) for video in videos}
        if len(lengths) == 1:
            videos = torch.stack(videos)
        elif return_tensors is not None:
            raise ValueError(
                f"Videos of {', '.join(map(str, sorted(lengths)))} frames do not fit into a batch: give clips of one "
                "length, or one video at a time."
            )
        data = {"pixel_values_videos": videos, "pixel_mask": pixel_mask, "original_sizes": original_sizes}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _resize_and_normalize(
        self,
        video: torch.Tensor,
        *,
        do_resize: bool,
        size: Any,
        resample: Any,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Sequence[float] | None,
        image_std: Sequence[float] | None,
    ) -> torch.Tensor:
        """Prepare one video `(num_frames, 3, height, width)`, without padding; floats are in 0..1 already."""
        do_rescale = do_rescale and not video.is_floating_point()
        if do_resize:
            height, width = _size_after_resize(video.shape[-2], video.shape[-1], size)
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


def find_video_processor(name: str | os.PathLike | None, revision: str | None = None) -> CvisVideoProcessor | None:
    """Load the video processor that is saved with a model, or that of an image model.

    Args:
        name (`str` or `os.PathLike`, *optional*): folder, or repository on the Hub.
        revision (`str`, *optional*): revision of the repository.

    Returns:
        `CvisVideoProcessor` or `None`: `None` if the folder or the repository holds none.
    """
    if not name or (Path(name).exists() and not any((Path(name) / file).is_file() for file in PROCESSOR_FILES)):
        return None
    try:
        return AutoVideoProcessor.from_pretrained(name, revision=revision)
    except OSError:
        return None
    except ValueError:  # neither processor nor model states a type of video processor: take the settings of the pixels
        return CvisVideoProcessor.from_pretrained(name, revision=revision)


def _array_or_path(video: Any) -> Any:
    """Return a video as the base class takes it: an array or tensor with four axes, or a path."""
    if isinstance(video, Path):
        return str(video)
    if isinstance(video, str) or getattr(video, "ndim", None) == 4:
        return video
    return np.stack(list(open_video(video)))


def _size_after_resize(height: int, width: int, size: Any) -> tuple[int, int]:
    """Return the size that the setting `size` gives to a frame: by its short side, or exactly as it states."""
    if not size.get("shortest_edge"):
        return size["height"], size["width"]
    return resized_size(height, width, size["shortest_edge"], size.get("longest_edge"))


def _pad(video: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return nn.functional.pad(video, (0, size[1] - video.shape[-1], 0, size[0] - video.shape[-2]))
