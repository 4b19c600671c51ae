# SPDX-License-Identifier: Apache-2.0
"""Configuration shared by the systems whose queries read all frames of a clip at once."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from ...messages import check_at_least
from ..configuration_base import VideoConfigMixin, switch
from ..docstrings import document_config
from ..frame_detector.configuration_frame_detector import FrameDetectorConfig


@document_config
@strict
class ClipDetectorConfig(VideoConfigMixin, FrameDetectorConfig):
    r"""Configuration shared by the systems whose queries read all frames of a clip at once.

    It extends the configuration of the frame detector, so that the `config.json` of a Mask2Former checkpoint, for
    images or videos, loads as it is.

    Two quirks of CRISP's released loader have no switch. It keeps objects of other tasks as targets, with empty masks
    and the class no-object; here `ClassFilter` leaves them out with the data of their tasks, and no model sees them. On
    YouTube-VIS 2019 its number for no-object is 35, a real class, which the task that owns it then also learns from
    such objects.

    Args:
        max_clip_frames (`int`, *optional*, defaults to `128`):
            Most frames of a video that are one clip, as in published inference. A longer video is processed in windows
            of that many frames. A video for which the available memory is not enough is processed in shorter windows.
        window_overlap (`int`, *optional*, defaults to `8`):
            Frames that neighbouring windows share, at most half a window. Tracks are joined by their predictions for
            these frames.
    """

    max_clip_frames: int = 128
    window_overlap: int = 8
    class_targets: Literal["visible", "released"] | None = switch(
        "visible",
        paper="visible",
        released="released",
        reason="Objects that are absent in the last frame of a clip keep their class as target.",
    )

    def validate_architecture(self) -> None:
        """Check the lengths of windows, and the fields of the frame detector.

        Raises:
            ValueError: A field has a value that the clip detector does not support.
        """
        super().validate_architecture()
        check_at_least("max_clip_frames", self.max_clip_frames, 2, "frames")
        check_at_least("window_overlap", self.window_overlap, 1, "frames")


__all__ = ["ClipDetectorConfig"]
