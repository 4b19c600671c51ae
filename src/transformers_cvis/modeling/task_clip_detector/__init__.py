# SPDX-License-Identifier: Apache-2.0
"""Clip detector that learns task by task: model of ECLIPSE and of the baselines, and base of CRISP."""

from .configuration_task_clip_detector import TaskClipDetectorConfig
from .modeling_task_clip_detector import TaskClipDetectorForVideoInstanceSegmentation

__all__ = ["TaskClipDetectorConfig", "TaskClipDetectorForVideoInstanceSegmentation"]
