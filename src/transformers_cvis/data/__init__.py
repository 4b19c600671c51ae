# SPDX-License-Identifier: Apache-2.0
"""Read, check, split, augment and generate annotated videos and images, and sample training clips from them."""

from ..ytvis_json import Problem
from .annotation_files import images_as_videos, read_annotations
from .augmentation import (
    ClipAugmentation,
    LargeScaleJitter,
    PseudoVideoAugmentation,
    RandomCropPath,
    RandomRotation,
    evaluation_resize,
    mask2former_augmentation,
)
from .class_mapping import CLASS_MAPPINGS, ClassFilter, map_categories
from .clips import ClipDataset, MixedClipDataset, VideoDataset, collate_clips, sample_clip_frames
from .mask_folders import read_mask_folders
from .moving_shapes import SHAPES, MovingShapesVideo, generate_video, make_moving_shapes
from .preview import draw_clips
from .splits import is_split_of, split_annotations, split_ytvis
from .validation import validate_annotations, validate_ytvis
from .ytvis import class_names, find_image_root, load_coco, load_ytvis

__all__ = [
    "CLASS_MAPPINGS",
    "SHAPES",
    "ClassFilter",
    "ClipAugmentation",
    "ClipDataset",
    "LargeScaleJitter",
    "MixedClipDataset",
    "MovingShapesVideo",
    "Problem",
    "PseudoVideoAugmentation",
    "RandomCropPath",
    "RandomRotation",
    "VideoDataset",
    "class_names",
    "collate_clips",
    "draw_clips",
    "evaluation_resize",
    "find_image_root",
    "generate_video",
    "images_as_videos",
    "is_split_of",
    "load_coco",
    "load_ytvis",
    "make_moving_shapes",
    "map_categories",
    "mask2former_augmentation",
    "read_annotations",
    "read_mask_folders",
    "sample_clip_frames",
    "split_annotations",
    "split_ytvis",
    "validate_annotations",
    "validate_ytvis",
]
