# SPDX-License-Identifier: Apache-2.0
"""Annotation formats, their sections and keys, and the problems of a file."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AnnotationFormat:
    """Keys and names of a format. YouTube-VIS annotates the tracks of videos, COCO the objects of images.

    Attributes:
        name: name of the format, for messages.
        holder: "video" or "image", the owner of annotations.
        required_keys: section -> keys that its entries must have. Only these fields are checked.
        may_be_empty: accept a file without videos or categories.
    """

    name: str
    holder: str
    required_keys: dict[str, tuple[str, ...]]
    may_be_empty: bool = False

    @property
    def section(self) -> str:
        """Top-level key of the videos or images."""
        return f"{self.holder}s"

    @property
    def reference(self) -> str:
        """Key of an annotation that names its video or image, and the field of [`Problem`] for it."""
        return f"{self.holder}_id"


YTVIS = AnnotationFormat(
    "YouTube-VIS",
    "video",
    {
        "videos": ("id", "width", "height", "length", "file_names"),
        "categories": ("id", "name"),
        "annotations": ("id", "video_id", "category_id", "segmentations", "bboxes"),
    },
)
"""Format of a file to train on."""

COCO = AnnotationFormat(
    "COCO",
    "image",
    {
        "images": ("id", "width", "height", "file_name"),
        "categories": ("id", "name"),
        "annotations": ("id", "image_id", "category_id", "segmentation", "bbox"),
    },
)

GROUND_TRUTH = AnnotationFormat(
    "YouTube-VIS",
    "video",
    {
        "videos": ("id", "width", "height", "length"),
        "categories": ("id", "name"),
        "annotations": ("id", "video_id", "category_id", "segmentations"),
    },
    may_be_empty=True,  # with few videos, a process may get none to evaluate
)
"""Format of a file to evaluate on. It needs neither pictures nor boxes."""

RESULTS = AnnotationFormat(
    "YouTube-VIS results",
    "video",
    {"videos": ("id",), "annotations": ("video_id", "category_id", "segmentations", "score")},
    may_be_empty=True,
)
"""Format of tracks that a model found, to be compared with a ground truth."""

FORMATS = {"videos": YTVIS, "images": COCO}


@dataclass(frozen=True)
class Problem:
    """A problem of an annotation file.

    Attributes:
        message: what is wrong, what was found, and what to do.
        video_id: id of the video that has the problem, or None.
        annotation_id: id of the annotation that has the problem, or None.
        image_id: id of the image that has the problem, in COCO format, or None.
    """

    message: str
    video_id: int | None = None
    annotation_id: int | None = None
    image_id: int | None = None

    def __str__(self) -> str:
        places = []
        if self.video_id is not None:
            places.append(f"video {self.video_id}")
        if self.image_id is not None:
            places.append(f"image {self.image_id}")
        if self.annotation_id is not None:
            places.append(f"annotation {self.annotation_id}")
        return f"{', '.join(places)}: {self.message}" if places else self.message
