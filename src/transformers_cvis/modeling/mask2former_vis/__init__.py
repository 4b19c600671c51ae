# SPDX-License-Identifier: Apache-2.0
"""Mask2Former-VIS: Mask2Former whose queries read all frames of a video at once."""

from .configuration_mask2former_vis import Mask2FormerVisConfig
from .modeling_mask2former_vis import Mask2FormerVisForVideoInstanceSegmentation

__all__ = ["Mask2FormerVisConfig", "Mask2FormerVisForVideoInstanceSegmentation"]
