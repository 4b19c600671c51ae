# SPDX-License-Identifier: Apache-2.0
"""Mask2Former-VIS: Mask2Former with the frames of a clip as the third dimension of an image (Cheng et al., 2021)."""

from ..clip_detector.modeling_clip_detector import ClipDetector
from .configuration_mask2former_vis import Mask2FormerVisConfig


class Mask2FormerVisForVideoInstanceSegmentation(ClipDetector):
    """Clip detector that segments and tracks in one step: each query segments its object in all frames of a video.

    `from_pretrained` loads any Mask2Former checkpoint from the Hub or from a folder. A checkpoint for videos is ready
    to use; one for images is a start for training on videos.
    """

    config: Mask2FormerVisConfig
    config_class = Mask2FormerVisConfig


__all__ = ["Mask2FormerVisForVideoInstanceSegmentation"]
