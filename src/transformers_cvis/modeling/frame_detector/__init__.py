# SPDX-License-Identifier: Apache-2.0
"""Frame detector: Mask2Former on single frames, from pixels to multi-scale features, mask features and queries."""

from .configuration_frame_detector import FrameDetectorConfig
from .modeling_frame_detector import FrameDetector

__all__ = ["FrameDetector", "FrameDetectorConfig"]
