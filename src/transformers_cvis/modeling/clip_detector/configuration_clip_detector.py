# SPDX-License-Identifier: Apache-2.0
"""Configuration shared by the systems whose queries read all frames of a clip at once."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from ...messages import check_at_least
from ..configuration_base import VideoConfigMixin, switch
from ..frame_detector.configuration_frame_detector import FrameDetectorConfig


@strict
class ClipDetectorConfig(VideoConfigMixin, FrameDetectorConfig):
    r"""
    Configuration of a clip detector: that of the frame detector, so the `config.json` of a Mask2Former checkpoint, for
    images or videos, loads as it is, the fields of `VideoConfigMixin`, and the following.

    max_clip_frames (`int`, defaults to 128):
        Most frames of a video that are one clip, as in published inference. A longer video is processed in windows of
        that many frames, and so is one for which the memory at hand is not enough, in shorter ones.
    window_overlap (`int`, defaults to 8):
        Frames that neighbouring windows share; their tracks are joined by what they say of these. At most half a
        window.
    class_targets (`"visible"` or `"released"`, defaults to `"visible"`):
        Which class queries are to give an object: that of the frames of the clip which show it. Released code reads
        classes from the last frame, so that an object which is absent there is to be no object, although its masks
        count; choose it to repeat published training. Two more quirks of CRISP's released loader have no switch: it
        keeps objects of other tasks as targets, with empty masks and the class no-object, while here they are left out
        with the data of their tasks (`ClassFilter`) and no model ever sees them; and on YouTube-VIS 2019 its number for
        no-object is 35, a real class, which the task that owns it learns from such objects, too.
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
