# SPDX-License-Identifier: Apache-2.0
"""Pixels to multi-scale features, mask features and frame queries."""

from .configuration_frame_detector import FrameDetectorConfig
from .modeling_frame_detector import FrameDetector

__all__ = ["FrameDetector", "FrameDetectorConfig"]
