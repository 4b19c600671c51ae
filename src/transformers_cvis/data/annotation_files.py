# SPDX-License-Identifier: Apache-2.0
"""Read annotation files of YouTube-VIS and COCO format into one form, in which an image is a video of one frame."""

import os
from collections.abc import Collection, Mapping
from typing import Literal

from ..ytvis_json import FORMATS, read_annotation_json, refuse, structure_problems
from .class_mapping import ClassFilter, map_categories


def read_annotations(
    json_path: str | os.PathLike,
    kind: Literal["videos", "images"] = "videos",
    class_mapping: str | Mapping[str, str] | None = None,
    labels: Collection[str] | None = None,
    class_filter: ClassFilter | None = None,
) -> dict:
    """Read and check an annotation file, and return its content as YouTube-VIS json.

    Args:
        json_path: path of the annotation file.
        kind: "videos" for YouTube-VIS and OVIS, "images" for COCO format.
        class_mapping: from category names to class names, see [`map_categories`]. None keeps the categories.
        labels: class names that the mapping may lead to, see [`map_categories`]. Ignored with a `class_filter`.
        class_filter: selects videos and classes after the mapping. None keeps all.

    Raises:
        FileNotFoundError: `json_path` does not exist.
        ValueError: the file breaks the format, or the mapping or the filter does not fit it, see [`map_categories`] and
            [`ClassFilter.apply`]. The message names the file.
    """
    content, form = read_annotation_json(json_path), FORMATS[kind]
    refuse(structure_problems(content, form), str(json_path), form)
    if kind == "images":
        content = images_as_videos(content)
    try:
        if class_mapping is not None:
            content = map_categories(content, class_mapping, labels if class_filter is None else None)
        if class_filter is not None:
            content = class_filter.apply(content)
    except ValueError as error:
        raise ValueError(f"{json_path}: {error}") from error
    return content


def images_as_videos(content: dict) -> dict:
    """Convert COCO json to YouTube-VIS json, in which every image is a video of one frame. All ids are kept."""
    return {
        **{key: value for key, value in content.items() if key not in ("images", "annotations")},
        "videos": [
            {
                **{key: image[key] for key in ("id", "width", "height")},
                "length": 1,
                "file_names": [image["file_name"]],
            }
            for image in content["images"]
        ],
        "annotations": [
            {
                **{key: annotation[key] for key in ("id", "category_id")},
                "video_id": annotation["image_id"],
                "iscrowd": annotation.get("iscrowd", 0),
                "segmentations": [annotation["segmentation"] or None],
                "bboxes": [annotation["bbox"] or None],
            }
            for annotation in content.get("annotations") or []
        ],
    }
