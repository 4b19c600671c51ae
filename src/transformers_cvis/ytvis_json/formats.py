# SPDX-License-Identifier: Apache-2.0
"""The names of things in the annotation formats, and what a problem of a file is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AnnotationFormat:
    """The words of a format: YouTube-VIS annotates the tracks of videos, COCO the objects of images.

    Attributes:
        name: of the format, for messages.
        holder: "video" or "image", which annotations belong to.
        required_keys: by section the keys that its entries must have. Only these fields are checked.
        may_be_empty: whether a file without videos or categories is taken.
    """

    name: str
    holder: str
    required_keys: dict[str, tuple[str, ...]]
    may_be_empty: bool = False

    @property
    def section(self) -> str:
        """The top-level key of the videos or images."""
        return f"{self.holder}s"

    @property
    def reference(self) -> str:
        """The key of an annotation that names its video or image; also the field of [`Problem`]."""
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
"""A file to train on."""

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
    may_be_empty=True,  # a process that gets none of few videos evaluates nothing
)
"""A file to evaluate on, which needs neither pictures nor boxes."""

RESULTS = AnnotationFormat(
    "YouTube-VIS results",
    "video",
    {"videos": ("id",), "annotations": ("video_id", "category_id", "segmentations", "score")},
    may_be_empty=True,
)
"""Tracks that a model found, to be compared with a ground truth."""

FORMATS = {"videos": YTVIS, "images": COCO}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in an annotation file.

    Attributes:
        message: what is wrong, what was found, and what to do.
        video_id: of the video that has the problem, None if no video has.
        annotation_id: likewise of the annotation.
        image_id: likewise of the image, in COCO format.
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
