# SPDX-License-Identifier: Apache-2.0
"""Video in: any source that a user may have, as a stream of RGB frames in bounded memory."""

import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image, ImageOps
from transformers.utils import logging

try:
    from torchcodec.decoders import VideoDecoder
except Exception:  # not installed, or without FFmpeg libraries (another error than ImportError): PyAV brings its own
    VideoDecoder = None

logger = logging.get_logger(__name__)

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
_GREY_OR_COLOUR_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
_URL = re.compile(r"^[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_URL_TIMEOUT_SECONDS = 30.0
# Form in which the decoders take a video file: its path, its URL, or its content.
_VideoFile = str | bytes


class VideoFrames:
    """Iterable over the frames of a video, uint8 RGB arrays `(height, width, 3)`, with one frame in memory at a time.

    [`open_video`] makes it. Files, folders, lists and arrays can be iterated any number of times; an iterator of frames
    only once.

    Attributes:
        name (`str`): name of the video in messages.
        size (`tuple[int, int]`): height and width of every frame, in pixels, after rotation.
        fps (`float` or `None`): frames per second of what is iterated; `None` if the source has no clock.
        num_frames (`int` or `None`): number of frames that the source states; `None` if it states none.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[], Iterator[tuple[float | None, Any]]],
        fps: float | None,
        num_frames: int | None,
        target_fps: float | None = None,
        stride: int = 1,
        max_frames: int | None = None,
    ) -> None:
        if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1:
            raise ValueError(f"`stride` must be a whole number of at least 1, got {stride!r}.")
        if max_frames is not None and (not isinstance(max_frames, int) or max_frames < 1):
            raise ValueError(f"`max_frames` must be a whole number of at least 1 or None, got {max_frames!r}.")
        if target_fps is not None and target_fps <= 0:
            raise ValueError(f"`fps` must be above 0, got {target_fps!r}.")
        if target_fps is not None and stride != 1:
            raise ValueError("`fps` and `stride` both choose frames: give one of them, not both.")
        if target_fps is not None and fps is None:
            raise ValueError(f"{name} has no frame rate, so `fps={target_fps}` cannot be reached: use `stride`.")
        self.name = name
        self._read = read
        self._stride = stride
        self._max_frames = max_frames
        # A rate above the source's would only repeat frames.
        self._target_fps = None if target_fps is None or target_fps >= fps else float(target_fps)
        self.fps = None if fps is None else self._target_fps or fps / stride
        if num_frames is not None:
            num_frames = -(-num_frames // stride)
            if self._target_fps is not None:
                num_frames = max(1, round(num_frames * self._target_fps / fps))
            if max_frames is not None:
                num_frames = min(num_frames, max_frames)
        self.num_frames = num_frames

        self._opened: Iterator[np.ndarray] | None
        first, self._opened = _peek(self._chosen())
        if first is None:
            raise ValueError(f"{name} holds no frame that can be read.")
        self.size: tuple[int, int] = first.shape[:2]

    def __iter__(self) -> Iterator[np.ndarray]:
        # The reader that found the first frame continues from there; later loops start the source again.
        opened, self._opened = self._opened, None
        frames = self._chosen() if opened is None else opened
        for index, frame in enumerate(frames):
            if frame.shape[:2] != self.size:
                raise ValueError(
                    f"Frame {index} of {self.name} is {_pixels(frame.shape[:2])}, but the first frame is "
                    f"{_pixels(self.size)}: all frames of a video must have one size."
                )
            yield frame

    def _chosen(self) -> Iterator[np.ndarray]:
        chosen = 0
        for index, (seconds, frame) in enumerate(self._read()):
            if self._target_fps is None:
                skipped = index % self._stride != 0
            else:  # keep the first frame at or after each tick of the wanted clock
                skipped = seconds * self._target_fps < chosen - 1e-6
            if skipped:
                continue
            yield to_rgb_frame(frame, f"Frame {index} of {self.name}")
            chosen += 1
            if chosen == self._max_frames:
                return


def open_video(
    source: Any, fps: float | None = None, stride: int = 1, max_frames: int | None = None, name: str | None = None
) -> VideoFrames:
    """Open a video of any kind for reading, frame by frame.

    Files are decoded by torchcodec if it is installed, otherwise by PyAV, which also reads all URLs. A file that ends
    earlier than its header states gives a warning with the number of frames that could be read.

    Args:
        source: a video in one of these forms. Pixels are uint8 in 0..255 or float in 0..1; grey frames become RGB, an
            alpha channel is dropped.

            - the path or URL of a video file (mp4, webm, gif and every other format of FFmpeg), whose rotation
              is applied; or the file itself, open in binary mode or as `bytes`;
            - a folder of images, in natural order (`2.jpg` before `10.jpg`), or a list of image paths, in list order;
            - an array or tensor `(num_frames, height, width, 3)` or `(num_frames, 3, height, width)`, or
              `(num_frames, height, width)` for grey frames;
            - a list or any iterator of frames: PIL images, or arrays or tensors `(height, width)`,
              `(height, width, channels)` or `(channels, height, width)` with 1, 3 or 4 channels.
        fps (`float`, *optional*): frames per second to keep, for sources that have a clock.
        stride (`int`, defaults to 1): keep every `stride`-th frame.
        max_frames (`int`, *optional*): stop after this many kept frames.
        name (`str`, *optional*): name of the video in messages; the file name by default.

    Returns:
        `VideoFrames`: the frames; the first one has been read already.

    Raises:
        FileNotFoundError: a path does not exist.
        TypeError: the source is not a video of any kind, or a file is open in text mode.
        ValueError: the source cannot be read as a video or holds no frame; while iterating, a frame is of another
            size, of another dtype or out of range.
    """
    if isinstance(source, VideoFrames):
        if fps is not None or stride != 1 or max_frames is not None:
            raise ValueError("An opened video keeps its `fps`, `stride` and `max_frames`: give them to `open_video`.")
        return source
    sampling: dict[str, Any] = {"target_fps": fps, "stride": stride, "max_frames": max_frames}

    if isinstance(source, (str, Path)):
        name = name or str(source)
        if not _URL.match(str(source)):
            path = Path(source).expanduser()
            if not path.exists():
                raise FileNotFoundError(f"No file or folder {str(source)!r} found.")
            if path.is_dir():
                return _open_image_files(_images_in(path), name, sampling)
            source = str(path)
        return _open_video_file(str(source), name, sampling)

    if isinstance(source, (bytes, bytearray, memoryview)) or hasattr(source, "read"):
        content = source.read() if hasattr(source, "read") else bytes(source)
        name = name or str(getattr(source, "name", "The video file"))
        if not isinstance(content, bytes):
            raise TypeError(f"{name} is a file that was opened as text: open it in binary mode, `open(path, 'rb')`.")
        return _open_video_file(content, name, sampling)

    if isinstance(source, (np.ndarray, torch.Tensor)):
        name = name or "The array"
        if source.ndim == 3 and {source.shape[0], source.shape[-1]} & {3, 4}:
            raise ValueError(
                f"{name} of shape {tuple(source.shape)} looks like one image; a video has 4 axes (num_frames first): "
                "use `image[None]` for a video of one frame, and `frames[..., None]` for frames that are grey."
            )
        if source.ndim not in (3, 4):
            raise ValueError(f"{name} must be (num_frames, height, width, 3), got shape {tuple(source.shape)}.")
        return VideoFrames(name, lambda: _untimed(source), None, len(source), **sampling)

    if isinstance(source, (list, tuple)):
        name = name or "The list of frames"
        if source and all(isinstance(item, (str, Path)) for item in source):
            return _open_image_files([Path(item) for item in source], name, sampling)
        return VideoFrames(name, lambda: _untimed(source), None, len(source), **sampling)

    if isinstance(source, Iterable):
        return VideoFrames(name or "The iterator of frames", lambda: _untimed(source), None, None, **sampling)
    raise TypeError(
        "A video is a path, a URL, a folder, a binary file, an array, a list or an iterator of frames, got "
        f"{type(source).__name__}."
    )


def is_list_of_videos(videos: Any) -> bool:
    """Return whether this is several videos: an array with five axes, or a list or tuple that holds other than frames.

    An empty list holds no video; a list of frames (see [`is_frame`]) is one video.
    """
    if isinstance(videos, (np.ndarray, torch.Tensor)):
        return videos.ndim == 5
    return isinstance(videos, (list, tuple)) and not (videos and all(is_frame(item) for item in videos))


def is_frame(item: Any) -> bool:
    """Return whether this is one frame: an image, an array of fewer than four axes, or the path of an image."""
    if isinstance(item, (np.ndarray, torch.Tensor)):
        return item.ndim < 4
    return isinstance(item, Image.Image) or (isinstance(item, (str, Path)) and _is_image_file(Path(item)))


def _is_image_file(path: Path) -> bool:
    return path.suffix.lower() in _IMAGE_SUFFIXES


def to_rgb_frame(frame: Any, name: str = "The frame") -> np.ndarray:
    """Convert one frame to RGB.

    Args:
        frame: a PIL image, or an array or tensor `(height, width)`, `(height, width, channels)` or
            `(channels, height, width)` with 1, 3 or 4 channels, uint8 in 0..255 or float in 0..1.
        name (`str`): name of the frame in messages.

    Returns:
        `np.ndarray` of shape `(height, width, 3)`, uint8.

    Raises:
        TypeError: the frame is neither an image nor an array.
        ValueError: the frame is empty, of another shape, mode or dtype, or out of range.
    """
    if isinstance(frame, Image.Image):
        if frame.mode not in _GREY_OR_COLOUR_MODES:
            raise ValueError(f"{name} is an image of mode {frame.mode!r}: convert it to 8-bit grey or RGB first.")
        return np.array(frame.convert("RGB"))
    if isinstance(frame, torch.Tensor):
        frame = frame.detach().cpu()
        frame = frame.float().numpy() if frame.is_floating_point() else frame.numpy()
    if not isinstance(frame, np.ndarray):
        raise TypeError(f"{name} must be an image, an array or a tensor, got {type(frame).__name__}.")

    if 0 in frame.shape:
        raise ValueError(f"{name} is empty: shape {frame.shape}.")
    frame = frame[..., None] if frame.ndim == 2 else np.moveaxis(frame, channel_axis(frame.shape, name), -1)
    if np.issubdtype(frame.dtype, np.floating):
        check_float_range(float(frame.min()), float(frame.max()), name)
        frame = np.rint(frame.astype(np.float32) * 255).astype(np.uint8)
    elif frame.dtype != np.uint8:
        raise ValueError(f"{name} has dtype {frame.dtype}: pixels are uint8 in 0..255 or float in 0..1.")
    if frame.shape[-1] == 1:
        frame = np.repeat(frame, 3, axis=-1)
    return np.ascontiguousarray(frame[..., :3])


def check_float_range(lowest: float, highest: float, name: str) -> None:
    """Check that float pixels lie in 0..1.

    Args:
        lowest (`float`): smallest pixel; NaN if any pixel is.
        highest (`float`): largest pixel.
        name (`str`): name of the frame or video in messages.

    Raises:
        ValueError: a pixel is NaN, infinite or out of range.
    """
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise ValueError(f"{name} holds NaN or infinite pixels.")
    if lowest < 0 or highest > 1:
        raise ValueError(
            f"{name} holds float pixels in {lowest:.4g}..{highest:.4g}: pixels are float in 0..1 or uint8 in 0..255."
        )


def channel_axis(shape: tuple[int, ...], name: str = "The frame") -> int:
    """Find the axis of a frame's channels.

    Args:
        shape (`tuple[int, ...]`): shape of the frame.
        name (`str`): name of the frame in messages.

    Returns:
        `int`: 0 for `(channels, height, width)`, -1 for `(height, width, channels)`.

    Raises:
        ValueError: the shape is neither, with 1, 3 or 4 channels.
    """
    if len(shape) == 3:
        # Colour before grey: (3, 1, 1) is one RGB pixel, not three grey ones.
        for channels in ((3, 4), (1,)):
            if shape[-1] in channels:
                return -1
            if shape[0] in channels:
                return 0
    raise ValueError(
        f"{name} must be (height, width, channels) or (channels, height, width) with 1, 3 or 4 channels, "
        f"got shape {tuple(shape)}."
    )


def _open_image_files(paths: list[Path], name: str, sampling: dict[str, Any]) -> VideoFrames:
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{name}: no image {str(path)!r} found.")
    return VideoFrames(name, lambda: ((None, _read_image(path)) for path in paths), None, len(paths), **sampling)


def _images_in(folder: Path) -> list[Path]:
    paths = [path for path in folder.iterdir() if _is_image_file(path)]
    if not paths:
        raise ValueError(f"The folder {str(folder)!r} holds no image ({', '.join(_IMAGE_SUFFIXES)}).")
    return sorted(paths, key=_natural_order)


def _natural_order(path: Path) -> list[tuple[int, int | str]]:
    parts = re.split(r"(\d+)", path.name.lower())
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts if part]


def _read_image(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except OSError as error:
        raise ValueError(f"{str(path)!r} is not an image that can be read ({error}).") from error


@dataclass
class _Header:
    """Facts that a video file states about itself; `None` where it states nothing."""

    num_frames: int | None
    fps: float | None
    seconds: float | None


def _open_video_file(source: _VideoFile, name: str, sampling: dict[str, Any]) -> VideoFrames:
    with _open_container(source, name) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
        header = _Header(
            num_frames=stream.frames or None,
            fps=float(rate) if rate else None,
            seconds=float(stream.duration * stream.time_base) if stream.duration else None,
        )
    decode = _decode_with_pyav if VideoDecoder is None or _is_url(source) else _decode_with_torchcodec
    read = partial(_read_video_file, decode, source, name, header)
    return VideoFrames(name, read, header.fps, header.num_frames, **sampling)


def _is_url(source: _VideoFile) -> bool:
    return isinstance(source, str) and _URL.match(source) is not None


def _open_container(source: _VideoFile, name: str) -> av.container.InputContainer:
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        container = av.open(file, timeout=_URL_TIMEOUT_SECONDS if _is_url(source) else None)
    except av.error.FFmpegError as error:
        raise ValueError(
            f"{name} cannot be opened as a video ({error.strerror}): it is of another kind, damaged or truncated."
        ) from error
    if not container.streams.video:
        container.close()
        raise ValueError(f"{name} has no video stream (sound only?).")
    return container


def _read_video_file(
    decode: Callable[[_VideoFile, str], Iterator[tuple[float | None, np.ndarray]]],
    source: _VideoFile,
    name: str,
    header: _Header,
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield pairs of seconds since the first frame and frame; warn if frames are missing that the header states."""
    count, seconds, start, problem = 0, 0.0, None, None
    frame_seconds = 1 / header.fps if header.fps else 0.0
    try:
        for time, frame in decode(source, name):
            time = count * frame_seconds if time is None else time
            start = time if start is None else start
            seconds = time - start
            yield seconds, frame
            count += 1
    except (av.error.FFmpegError, RuntimeError) as error:
        problem = getattr(error, "strerror", None) or str(error).splitlines()[0]
    # Frames may be missing on purpose (cut off by the container's edit list), but then the duration is also shorter.
    frames_missing = header.num_frames is not None and count < header.num_frames
    if frames_missing and (header.seconds is None or seconds + 3 * frame_seconds < header.seconds):
        problem = problem or "the file ends early"
    if problem is not None and count:
        logger.warning(
            f"{name} is truncated or damaged: {count} of {header.num_frames or 'an unknown number of'} frames could be "
            f"read ({problem}); only those are used."
        )


def _decode_with_pyav(source: _VideoFile, name: str) -> Iterator[tuple[float | None, np.ndarray]]:
    with _open_container(source, name) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            yield frame.time, _upright(frame)


def _decode_with_torchcodec(source: _VideoFile, name: str) -> Iterator[tuple[float | None, np.ndarray]]:
    decoder = VideoDecoder(source, dimension_order="NHWC")  # applies the rotation itself
    for index in range(len(decoder)):
        frame = decoder.get_frame_at(index)
        yield frame.pts_seconds, frame.data.numpy()


def _upright(frame: av.VideoFrame) -> np.ndarray:
    image = frame.to_ndarray(format="rgb24")
    quarter_turns = round(frame.rotation / 90) % 4  # counter-clockwise, like np.rot90
    return np.rot90(image, quarter_turns) if quarter_turns else image


def _untimed(frames: Iterable) -> Iterator[tuple[None, Any]]:
    return ((None, frame) for frame in frames)


def _peek(frames: Iterator[np.ndarray]) -> tuple[np.ndarray | None, Iterator[np.ndarray]]:
    first = next(frames, None)
    return first, frames if first is None else itertools.chain([first], frames)


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]} pixels (width x height)"
