# SPDX-License-Identifier: Apache-2.0
"""Mask2Former-VIS: Mask2Former with the frames of a clip as the third dimension of an image (Cheng et al., 2021)."""

from ..clip_detector.modeling_clip_detector import ClipDetector
from .configuration_mask2former_vis import Mask2FormerVisConfig


class Mask2FormerVisForVideoInstanceSegmentation(ClipDetector):
    """Segments and tracks in one step: each query reads all frames of a video and masks its object in all of them.

    `from_pretrained` takes any Mask2Former checkpoint of the Hub or of a folder: one for videos as it is, one for
    images as the start of a training on videos.
    """

    config_class = Mask2FormerVisConfig


__all__ = ["Mask2FormerVisForVideoInstanceSegmentation"]
