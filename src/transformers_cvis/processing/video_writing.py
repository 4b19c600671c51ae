# SPDX-License-Identifier: Apache-2.0
"""Writing of annotated videos: an encoder as a context manager, and one pass that draws a segmented video."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from ..files import complete_file
from .drawing import contact_sheet, draw_tracks
from .segmentation import VideoSegmentation
from .video_reading import open_video

DEFAULT_FPS = 25.0
# Container, and the encoders to try in turn, for each file suffix.
_FORMATS = {
    ".mp4": ("mp4", ("libx264", "mpeg4")),
    ".mov": ("mov", ("libx264", "mpeg4")),
    ".mkv": ("matroska", ("libx264", "mpeg4")),
    ".webm": ("webm", ("libvpx-vp9", "libvpx")),
}


class VideoWriter:
    """Context manager that writes frames to a video file, which appears only if the block succeeds.

    ```python
    with VideoWriter("out.mp4", fps=25) as writer:
        writer.write(frame)
    ```

    Args:
        path (`str` or `os.PathLike`): `.mp4`, `.mov` and `.mkv` are written as H.264, or as MPEG-4 if FFmpeg has no
            H.264 encoder; `.webm` is written as VP9.
        fps (`float`, *optional*): frames per second; 25 by default.

    Raises:
        ValueError: the suffix is not supported, a frame is not uint8 RGB or not of the size of the first one, or no
            frame was written.
        OSError: the file cannot be written; nothing half-written remains.
    """

    def __init__(self, path: str | os.PathLike, fps: float | None = None) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in _FORMATS:
            raise ValueError(f"Cannot write a video {str(path)!r}: the name must end in {', '.join(_FORMATS)}.")
        self.fps = DEFAULT_FPS if fps is None else fps
        self._container: Any = None
        self._stream: Any = None
        self._size: tuple[int, int] | None = None
        self._session = self._write_session()

    def __enter__(self) -> "VideoWriter":
        self._session.__enter__()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._session.__exit__(*error)

    def write(self, frame: np.ndarray) -> None:
        """Add one frame; an odd side grows by one repeated line.

        Args:
            frame (`np.ndarray` of shape `(height, width, 3)`): uint8 RGB.

        Raises:
            ValueError: the frame is of another dtype or shape, or of another size than the first one.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"Frames must be uint8 (height, width, 3), got {frame.dtype} {frame.shape}.")
        if self._stream is None:
            self._open(frame.shape[:2])
        if frame.shape[:2] != self._size:
            raise ValueError(f"A frame of size {frame.shape[:2]} does not fit into a video of size {self._size}.")
        frame = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    @contextmanager
    def _write_session(self) -> Iterator[None]:
        with complete_file(self.path) as self._file:
            try:
                yield
                if self._stream is None:
                    raise ValueError(f"No frame was written to {str(self.path)!r}.")
                self._container.mux(self._stream.encode())
            finally:
                if self._container is not None:
                    self._container.close()

    def _open(self, size: tuple[int, int]) -> None:
        container_format, encoders = _FORMATS[self.path.suffix.lower()]
        encoder = next((name for name in encoders if name in av.codecs_available), None)
        if encoder is None:
            raise ValueError(f"This FFmpeg has none of the encoders {', '.join(encoders)}: reinstall `av` from PyPI.")
        self._size = size
        # Give the name, not the file: FFmpeg itself reports a full disk better than the callbacks of a Python file.
        self._container = av.open(self._file.name, mode="w", format=container_format)
        self._stream = self._container.add_stream(encoder, rate=Fraction(self.fps).limit_denominator(1001 * 30))
        self._stream.height, self._stream.width = (side + side % 2 for side in size)
        self._stream.pix_fmt = "yuv420p"
        if encoder == "libx264":
            self._stream.options = {"crf": "20", "preset": "veryfast"}
        elif encoder == "mpeg4":
            self._stream.options = {"qscale": "4"}


def render_video(
    video: Any,
    segmentation: VideoSegmentation,
    video_path: str | os.PathLike | None = None,
    contact_sheet_path: str | os.PathLike | None = None,
    *,
    num_tiles: int = 9,
    fps: float | None = None,
    stride: int = 1,
    max_frames: int | None = None,
) -> None:
    """Draw a segmented video, in one pass, into an annotated video and a PNG of evenly spaced frames.

    Args:
        video: the source that was segmented; an iterator, which can be read only once, is not enough.
        segmentation (`VideoSegmentation`): the result of [`segment_video`] for this video.
        video_path (`str` or `os.PathLike`, *optional*): file for the annotated video (see [`VideoWriter`]).
        contact_sheet_path (`str` or `os.PathLike`, *optional*): PNG file for the contact sheet.
        num_tiles (`int`, defaults to 9): number of frames on the contact sheet.
        fps (`float`, *optional*): as given to [`segment_video`].
        stride (`int`, defaults to 1): as given to [`segment_video`].
        max_frames (`int`, *optional*): as given to [`segment_video`].

    Raises:
        ValueError: the video has more frames than were segmented, or frames of another size.
        OSError: a file cannot be written.
    """
    frames = open_video(video, fps=fps, stride=stride, max_frames=max_frames)
    wanted = set(np.linspace(0, segmentation.num_frames - 1, num_tiles).round().astype(int).tolist())
    tiles: dict[int, np.ndarray] = {}
    with ExitStack() as stack:
        writer = None
        if video_path is not None:
            writer = stack.enter_context(VideoWriter(video_path, segmentation.fps))
        for index, frame in enumerate(frames):
            if index == segmentation.num_frames:
                raise ValueError(f"{frames.name} has more than the {segmentation.num_frames} segmented frames.")
            if writer is None and index not in wanted:
                continue
            frame = draw_tracks(frame, segmentation.tracks, index)
            if writer is not None:
                writer.write(frame)
            if index in wanted:
                tiles[index] = frame
    if contact_sheet_path is not None:
        captions = [
            f"frame {index}" + (f"  {index / segmentation.fps:.2f} s" if segmentation.fps else "") for index in tiles
        ]
        with complete_file(contact_sheet_path) as file:
            contact_sheet(list(tiles.values()), captions).save(file, format="PNG")
