# SPDX-License-Identifier: Apache-2.0
"""Loop over a video: read, prepare, run the model clip by clip, gather tracks."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..logs import progress_bar
from .protocols import VideoModel
from .tracks import Track, TrackAccumulator, clip_predictions
from .video_processor import CvisVideoProcessor
from .video_reading import VideoFrames, open_video

DEFAULT_THRESHOLD = 0.3
# Clip length for a model without `config.clip_length`, which attends to the whole video.
_FRAMES_AT_ONCE = 8


@dataclass
class VideoSegmentation:
    """The tracks of a video.

    Attributes:
        tracks (`list[Track]`): best first.
        size (`tuple[int, int]`): height and width of the frames, in pixels.
        num_frames (`int`): number of frames that were segmented.
        fps (`float` or `None`): frames per second of the segmented frames; `None` if the source has no clock.
    """

    tracks: list[Track]
    size: tuple[int, int]
    num_frames: int
    fps: float | None


@dataclass
class ClipSegmentation:
    """The tracks of one clip of a stream.

    Attributes:
        first_frame (`int`): number of the clip's first frame in the video.
        frames (`list[np.ndarray]`): the clip's frames, uint8 RGB `(height, width, 3)`.
        tracks (`list[Track]`): one segmentation and box per frame of the clip, with the scores of all clips so far.
    """

    first_frame: int
    frames: list[np.ndarray]
    tracks: list[Track]


class PreparedClip(NamedTuple):
    """Consecutive frames of a video, and the network input made of them."""

    frames: list[np.ndarray]  # uint8 RGB (height, width, 3)
    pixel_values: torch.Tensor  # (1, T, 3, H, W), normalised and padded


class PreparedVideo:
    """An opened video whose clips are decoded and prepared for the network on demand.

    One clip is in memory at a time, so that a video may be of any length. [`prepare_video`] makes it.

    Attributes:
        frames (`VideoFrames`): the opened video, with its name, size, frame rate and number of frames.
        input_size (`tuple[int, int]`): height and width of the network input without padding, in pixels.
        clip_length (`int`): number of frames in a clip; the last clip may be shorter.
    """

    def __init__(self, frames: VideoFrames, video_processor: CvisVideoProcessor, clip_length: int) -> None:
        self.frames = frames
        self.input_size = video_processor.resized_size(*frames.size)
        self.clip_length = clip_length
        self._video_processor = video_processor

    def clips(self) -> Iterator[PreparedClip]:
        """Read the video from its start, clip by clip."""
        for frames in _clips(self.frames, self.clip_length):
            yield PreparedClip(frames, self._video_processor.preprocess_clip(frames))

    def can_batch_with(self, other: "PreparedVideo") -> bool:
        """Return whether both videos are of one size and one known length, so that a batch can hold them."""
        ours, theirs = self.frames, other.frames
        same = (ours.size, ours.num_frames, self.clip_length) == (theirs.size, theirs.num_frames, other.clip_length)
        return same and ours.num_frames is not None


class VideosDifferError(ValueError):
    """Videos of a batch turned out to have different numbers of frames."""


def prepare_video(
    model: VideoModel,
    video_processor: CvisVideoProcessor,
    video: Any,
    *,
    clip_length: int | None = None,
    fps: float | None = None,
    stride: int = 1,
    max_frames: int | None = None,
) -> PreparedVideo:
    """Open a video for a model; the arguments are those of [`segment_video`].

    Returns:
        `PreparedVideo`: the video; its first frame has been read already.

    Raises:
        FileNotFoundError: the path does not exist.
        TypeError: `video` is not a video of any kind.
        ValueError: `clip_length` is below 1, or the video cannot be read.
    """
    clip_length = _checked_clip_length(model, clip_length)
    return PreparedVideo(open_video(video, fps=fps, stride=stride, max_frames=max_frames), video_processor, clip_length)


def gather_tracks(
    model: VideoModel,
    videos: Sequence[PreparedVideo],
    *,
    threshold: float | None = DEFAULT_THRESHOLD,
    top_k: int | None = None,
    progress: bool = False,
    on_clip: Callable[[int], None] | None = None,
) -> list[TrackAccumulator]:
    """Run a model over videos side by side, and compress its masks clip by clip.

    Args:
        model ([`VideoModel`]): the model, in any mode.
        videos (`Sequence[PreparedVideo]`): one video, or several that run side by side (see
            [`PreparedVideo.can_batch_with`]).
        threshold (`float`, *optional*, defaults to 0.3): least score of a track.
        top_k (`int`, *optional*): largest number of tracks of a video.
        progress (`bool`): show a progress bar.
        on_clip (`Callable`, *optional*): called after each clip with the number of frames that are done.

    Returns:
        `list[TrackAccumulator]`: for each video the scores and run lengths of all its clips, ready for `tracks()`.

    Raises:
        VideosDifferError: a video has more frames than another, although they state the same number.
        ValueError: `threshold` or `top_k` is out of range, or a frame cannot be used.
    """
    accumulators = [_accumulator(model, video, threshold, top_k) for video in videos]
    for _, output in _run(model, videos, progress):
        for video, accumulator in enumerate(accumulators):
            accumulator.update(*clip_predictions(output, video))
        if on_clip is not None:
            on_clip(accumulators[0].num_frames)
    return accumulators


def segment_video(
    model: VideoModel,
    video_processor: CvisVideoProcessor,
    video: Any,
    *,
    clip_length: int | None = None,
    threshold: float | None = DEFAULT_THRESHOLD,
    top_k: int | None = None,
    fps: float | None = None,
    stride: int = 1,
    max_frames: int | None = None,
    progress: bool = False,
    on_clip: Callable[[int], None] | None = None,
) -> VideoSegmentation:
    """Segment a whole video; between clips only run lengths stay in memory.

    Args:
        model ([`VideoModel`]): a video instance segmentation model of this package, or one with the same interface.
        video_processor (`CvisVideoProcessor`): the processor saved with the model.
        video: any source that [`open_video`] takes.
        clip_length (`int`, *optional*): frames per clip; 1 is online. `config.clip_length` by default, and 8 for a
            model without it, which attends to all frames with any clip length.
        threshold (`float`, *optional*, defaults to 0.3): least score of a track. `None` together with `top_k` selects
            as video benchmarks do (see [`TrackAccumulator`]).
        top_k (`int`, *optional*): largest number of tracks.
        fps (`float`, *optional*): frames per second to keep (see [`open_video`]).
        stride (`int`, defaults to 1): keep every `stride`-th frame.
        max_frames (`int`, *optional*): stop after this many kept frames.
        progress (`bool`): show a progress bar.
        on_clip (`Callable`, *optional*): called after each clip with the number of frames that are done.

    Returns:
        `VideoSegmentation`: tracks, size, number of frames and frame rate of the video.

    Raises:
        FileNotFoundError: the path does not exist.
        TypeError: `video` is not a video of any kind.
        ValueError: `clip_length` is below 1, `threshold` or `top_k` is out of range, or the video cannot be read.
    """
    prepared = prepare_video(
        model, video_processor, video, clip_length=clip_length, fps=fps, stride=stride, max_frames=max_frames
    )
    (accumulator,) = gather_tracks(
        model, [prepared], threshold=threshold, top_k=top_k, progress=progress, on_clip=on_clip
    )
    frames = prepared.frames
    return VideoSegmentation(accumulator.tracks(), frames.size, accumulator.num_frames, frames.fps)


def segment_stream(
    model: VideoModel,
    video_processor: CvisVideoProcessor,
    video: Any,
    *,
    clip_length: int | None = None,
    threshold: float | None = DEFAULT_THRESHOLD,
    top_k: int | None = None,
    fps: float | None = None,
    stride: int = 1,
    max_frames: int | None = None,
    progress: bool = False,
) -> Iterator[ClipSegmentation]:
    """Segment a stream of any length clip by clip, in constant memory; the arguments are those of [`segment_video`].

    Yields:
        `ClipSegmentation`: the next clip, with tracks that are scored by the clips so far.

    Raises:
        FileNotFoundError: the path does not exist.
        TypeError: `video` is not a video of any kind.
        ValueError: the model needs future frames (`model.is_online` is false), `clip_length` is below 1, `threshold`
            or `top_k` is out of range, or the video cannot be read.
    """
    if not model.is_online:
        raise ValueError(
            f"{type(model).__name__} reads the whole video before its first answer, so it cannot stream: "
            "use `segment_video`."
        )
    prepared = prepare_video(
        model, video_processor, video, clip_length=clip_length, fps=fps, stride=stride, max_frames=max_frames
    )
    return _stream(model, prepared, _accumulator(model, prepared, threshold, top_k), progress)


def _stream(
    model: VideoModel, video: PreparedVideo, accumulator: TrackAccumulator, progress: bool
) -> Iterator[ClipSegmentation]:
    for frames, output in _run(model, [video], progress):
        first_frame = accumulator.num_frames
        tracks = accumulator.step(*clip_predictions(output))
        yield ClipSegmentation(first_frame, frames, tracks)


def _checked_clip_length(model: VideoModel, clip_length: int | None) -> int:
    if clip_length is None:
        clip_length = getattr(model.config, "clip_length", _FRAMES_AT_ONCE)
    if isinstance(clip_length, bool) or not isinstance(clip_length, int) or clip_length < 1:
        raise ValueError(f"`clip_length` must be a whole number of at least 1, got {clip_length!r}.")
    return clip_length


def _accumulator(
    model: VideoModel, video: PreparedVideo, threshold: float | None, top_k: int | None
) -> TrackAccumulator:
    return TrackAccumulator(
        video.frames.size, video.input_size, model.config.id2label, threshold=threshold, top_k=top_k
    )


def _run(model: VideoModel, videos: Sequence[PreparedVideo], progress: bool) -> Iterator[tuple[list[np.ndarray], Any]]:
    """Yield pairs of the first video's frames of a clip, if the model is online, and the output for all videos."""
    waiting: deque[list[np.ndarray]] = deque()  # clips without an output so far

    def network_inputs() -> Iterator[torch.Tensor]:
        for clips in _side_by_side(videos, progress):
            # An offline model reads the whole video first: do not keep its frames in memory.
            waiting.append(clips[0].frames if model.is_online else [])
            yield torch.cat([clip.pixel_values for clip in clips]).to(model.device, model.dtype)

    outputs = iter(model.stream(network_inputs()))
    while True:
        # Restore gradient and training modes before each yield, which returns control to the caller.
        with torch.inference_mode(), _evaluation_mode(model):
            output = next(outputs, None)
        if output is None:
            return
        yield waiting.popleft(), output


def _side_by_side(videos: Sequence[PreparedVideo], progress: bool) -> Iterator[list[PreparedClip]]:
    """Yield the clips of videos of one size in step, one clip of each."""
    names = [Path(video.frames.name).name for video in videos]
    title = names[0] if len(names) == 1 else f"{len(names)} videos"
    with progress_bar(total=videos[0].frames.num_frames, desc=title, unit="frame", disable=not progress) as bar:
        for clips in zip_longest(*(video.clips() for video in videos)):
            lengths = {0 if clip is None else len(clip.frames) for clip in clips}
            if len(lengths) > 1:
                raise VideosDifferError(
                    f"Videos of a batch must have one number of frames, and these do not: {', '.join(names)}. Segment "
                    "them one by one."
                )
            yield list(clips)
            bar.update(lengths.pop())


def _clips(frames: Iterable[np.ndarray], clip_length: int) -> Iterator[list[np.ndarray]]:
    clip = []
    for frame in frames:
        clip.append(frame)
        if len(clip) == clip_length:
            yield clip
            clip = []
    if clip:
        yield clip


@contextmanager
def _evaluation_mode(model: VideoModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
