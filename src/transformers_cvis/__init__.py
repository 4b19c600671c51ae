# SPDX-License-Identifier: Apache-2.0
"""Continual video instance segmentation with transformers.

Importing the package registers its models with the Auto classes of transformers, its video processor, and the pipeline
"video-instance-segmentation". Names from training, data and evaluation are imported at first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .assets import default_model_path, demo_ground_truth_path, demo_video_path, task_adapter_path
from .hub.push import push_to_hub
from .logs import follow_transformers
from .modeling.auto import AutoModelForVideoInstanceSegmentation
from .modeling.crisp import CrispConfig, CrispForVideoInstanceSegmentation
from .modeling.frame_detector import FrameDetector, FrameDetectorConfig
from .modeling.genvis import GenVisConfig, GenVisForVideoInstanceSegmentation
from .modeling.hvpl import HvplConfig, HvplForVideoInstanceSegmentation
from .modeling.mask2former_vis import Mask2FormerVisConfig, Mask2FormerVisForVideoInstanceSegmentation
from .modeling.minvis import MinVisConfig, MinVisForVideoInstanceSegmentation
from .modeling.spvis import SpvisConfig, SpvisForVideoInstanceSegmentation
from .modeling.task_clip_detector import TaskClipDetectorConfig, TaskClipDetectorForVideoInstanceSegmentation
from .modeling.vita import VitaConfig, VitaForVideoInstanceSegmentation
from .pipelines import VideoInstanceSegmentationPipeline, register_pipeline
from .processing import CvisVideoProcessor, Track, VideoSegmentation, open_video, segment_stream, segment_video
from .systems import register_own_systems, register_system

if TYPE_CHECKING:
    from .continual import Schedule, train_continual
    from .data import load_ytvis, make_moving_shapes, validate_ytvis
    from .evaluation import evaluate_ytvis, predict_dataset, write_submission
    from .training import Recipe, train

follow_transformers()
register_own_systems()
register_pipeline()

_LAZY_NAMES = {
    "Recipe": "training",
    "Schedule": "continual",
    "evaluate_ytvis": "evaluation",
    "load_ytvis": "data",
    "make_moving_shapes": "data",
    "predict_dataset": "evaluation",
    "train": "training",
    "train_continual": "continual",
    "validate_ytvis": "data",
    "write_submission": "evaluation",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY_NAMES:
        return getattr(importlib.import_module(f".{_LAZY_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


__all__ = [
    "AutoModelForVideoInstanceSegmentation",
    "CrispConfig",
    "CrispForVideoInstanceSegmentation",
    "CvisVideoProcessor",
    "FrameDetector",
    "FrameDetectorConfig",
    "GenVisConfig",
    "GenVisForVideoInstanceSegmentation",
    "HvplConfig",
    "HvplForVideoInstanceSegmentation",
    "Mask2FormerVisConfig",
    "Mask2FormerVisForVideoInstanceSegmentation",
    "MinVisConfig",
    "MinVisForVideoInstanceSegmentation",
    "Recipe",
    "Schedule",
    "SpvisConfig",
    "SpvisForVideoInstanceSegmentation",
    "TaskClipDetectorConfig",
    "TaskClipDetectorForVideoInstanceSegmentation",
    "Track",
    "VideoInstanceSegmentationPipeline",
    "VideoSegmentation",
    "VitaConfig",
    "VitaForVideoInstanceSegmentation",
    "__version__",
    "default_model_path",
    "demo_ground_truth_path",
    "demo_video_path",
    "evaluate_ytvis",
    "load_ytvis",
    "make_moving_shapes",
    "open_video",
    "predict_dataset",
    "push_to_hub",
    "register_system",
    "segment_stream",
    "segment_video",
    "task_adapter_path",
    "train",
    "train_continual",
    "validate_ytvis",
    "write_submission",
]
