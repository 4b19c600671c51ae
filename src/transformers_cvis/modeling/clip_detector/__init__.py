# SPDX-License-Identifier: Apache-2.0
"""Clip detector: a frame detector whose queries read all frames of a clip at once."""

from .configuration_clip_detector import ClipDetectorConfig
from .modeling_clip_detector import ClipDetector
from .windows import ClipFeatures

__all__ = ["ClipDetector", "ClipDetectorConfig", "ClipFeatures"]
