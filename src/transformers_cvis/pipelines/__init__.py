# SPDX-License-Identifier: Apache-2.0
"""Pipeline of the task "video-instance-segmentation"."""

from .video_instance_segmentation import TASK, VideoInstanceSegmentationPipeline, register_pipeline

__all__ = ["TASK", "VideoInstanceSegmentationPipeline", "register_pipeline"]
