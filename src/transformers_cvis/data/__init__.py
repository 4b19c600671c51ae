"""Annotated videos in, training clips out: YouTube-VIS and OVIS files, validation, clip sampling, a generator."""

from .augmentation import ClipAugmentation, RandomCropPath, evaluation_resize, mask2former_augmentation
from .clips import ClipDataset, MixedClipDataset, VideoDataset, collate_clips, sample_clip_frames
from .moving_shapes import SHAPES, MovingShapesVideo, generate_video, make_moving_shapes
from .splits import split_ytvis
from .validation import Problem, validate_ytvis
from .ytvis import class_names, find_image_root, load_ytvis

__all__ = [
    "SHAPES",
    "ClipAugmentation",
    "ClipDataset",
    "MixedClipDataset",
    "MovingShapesVideo",
    "Problem",
    "RandomCropPath",
    "VideoDataset",
    "class_names",
    "collate_clips",
    "evaluation_resize",
    "find_image_root",
    "generate_video",
    "load_ytvis",
    "make_moving_shapes",
    "mask2former_augmentation",
    "sample_clip_frames",
    "split_ytvis",
    "validate_ytvis",
]
