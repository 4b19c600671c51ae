"""The loop over a video: read, prepare, run the model clip by clip, gather tracks."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..logs import progress_bar
from .tracks import DEFAULT_SCORE_RULE, Track, TrackAccumulator
from .video_processor import CvisVideoProcessor
from .video_reading import VideoFrames, open_video

DEFAULT_THRESHOLD = 0.3
# For models without clips of their own (they see the whole video): how many frames are handled at once.
_FRAMES_AT_ONCE = 8


@dataclass
class VideoSegmentation:
    """The tracks of a video.

    Attributes:
        tracks (`list[Track]`): best first.
        size (`tuple[int, int]`): height and width of the frames, in pixels.
        num_frames (`int`): how many frames were segmented.
        fps (`float` or `None`): frames per second of the segmented frames.
    """

    tracks: list[Track]
    size: tuple[int, int]
    num_frames: int
    fps: float | None


@dataclass
class ClipSegmentation:
    """What a stream gives for one clip.

    Attributes:
        first_frame (`int`): number of the clip's first frame in the video.
        frames (`list[np.ndarray]`): the clip's frames, uint8 RGB `(height, width, 3)`.
        tracks (`list[Track]`): one segmentation and box per frame of the clip; the scores are of all clips so far.
    """

    first_frame: int
    frames: list[np.ndarray]
    tracks: list[Track]


def segment_video(
    model,
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
        model: A video instance segmentation model of this package (anything with `stream`, `device`, `dtype` and
            `config.id2label`).
        video_processor: The processor saved with the model.
        video: Whatever [`open_video`] takes.
        clip_length (`int`, *optional*): Frames per clip; `config.clip_length` by default. 1 is online.
        threshold (`float`, *optional*, defaults to 0.3): Least score of a track. `None` together with `top_k`
            selects as video benchmarks do (see [`TrackAccumulator`]).
        top_k (`int`, *optional*): Most tracks.
        fps, stride, max_frames: Which frames are read, see [`open_video`].
        progress (`bool`): Show a progress bar.
        on_clip: Called after each clip with the number of frames that are done.

    Raises:
        ValueError: `clip_length` below 1, or a video that cannot be read (see [`open_video`]).
    """
    clip_length = _checked_clip_length(model, clip_length)
    frames = open_video(video, fps=fps, stride=stride, max_frames=max_frames)
    accumulator = _accumulator(model, video_processor, frames, threshold, top_k)
    for _, output in _run(model, video_processor, frames, clip_length, progress):
        accumulator.update(output.class_queries_logits[0], output.masks_queries_logits[0])
        if on_clip is not None:
            on_clip(accumulator.num_frames)
    return VideoSegmentation(accumulator.tracks(), frames.size, accumulator.num_frames, frames.fps)


def segment_stream(
    model,
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
    """Segment a stream of any length clip by clip, in constant memory; arguments as for [`segment_video`].

    A track's score is that of the clips so far. Only models that need no future frames can stream
    (`model.is_online`); a ValueError says so otherwise.
    """
    if not model.is_online:
        raise ValueError(
            f"{type(model).__name__} reads the whole video before its first answer, so it cannot stream: "
            "use `segment_video`."
        )
    clip_length = _checked_clip_length(model, clip_length)
    frames = open_video(video, fps=fps, stride=stride, max_frames=max_frames)
    accumulator = _accumulator(model, video_processor, frames, threshold, top_k)
    return _stream(model, video_processor, frames, clip_length, progress, accumulator)


def _stream(model, video_processor, frames, clip_length, progress, accumulator) -> Iterator[ClipSegmentation]:
    for clip, output in _run(model, video_processor, frames, clip_length, progress):
        first_frame = accumulator.num_frames
        tracks = accumulator.step(output.class_queries_logits[0], output.masks_queries_logits[0])
        yield ClipSegmentation(first_frame, clip, tracks)


def _checked_clip_length(model, clip_length: int | None) -> int:
    if clip_length is None:
        clip_length = getattr(model.config, "clip_length", _FRAMES_AT_ONCE)
    if isinstance(clip_length, bool) or not isinstance(clip_length, int) or clip_length < 1:
        raise ValueError(f"`clip_length` must be a whole number of at least 1, got {clip_length!r}.")
    return clip_length


def _accumulator(model, video_processor, frames: VideoFrames, threshold, top_k) -> TrackAccumulator:
    return TrackAccumulator(
        frames.size,
        video_processor.resized_size(*frames.size),
        model.config.id2label,
        threshold=threshold,
        top_k=top_k,
        score_rule=getattr(model.config, "score_rule", DEFAULT_SCORE_RULE),
    )


def _run(model, video_processor, frames: VideoFrames, clip_length, progress) -> Iterator[tuple[list[np.ndarray], Any]]:
    """Pairs of a clip's frames and the model's output for it."""
    waiting: deque[list[np.ndarray]] = deque()  # clips that the model has taken and not yet answered

    def prepared_clips() -> Iterator[torch.Tensor]:
        name = Path(frames.name).name
        bar = progress_bar(frames, total=frames.num_frames, desc=name, unit="frame", disable=not progress)
        for clip in _clips(bar, clip_length):
            # An offline model takes the whole video first: its frames must not pile up here.
            waiting.append(clip if model.is_online else [])
            yield video_processor.preprocess_clip(clip).to(model.device, model.dtype)

    outputs = iter(model.stream(prepared_clips()))
    while True:
        # Gradient and training modes are restored before control goes back to the caller of a generator.
        with torch.inference_mode(), _evaluation_mode(model):
            output = next(outputs, None)
        if output is None:
            return
        yield waiting.popleft(), output


def _clips(frames, clip_length: int) -> Iterator[list[np.ndarray]]:
    clip = []
    for frame in frames:
        clip.append(frame)
        if len(clip) == clip_length:
            yield clip
            clip = []
    if clip:
        yield clip


@contextmanager
def _evaluation_mode(model):
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
