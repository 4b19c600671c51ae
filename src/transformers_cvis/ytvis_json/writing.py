# SPDX-License-Identifier: Apache-2.0
"""Writing tracks as YouTube-VIS json, in its two forms.

An annotation of a data set has None in the frames where its object is absent. A result for the test servers has an
empty mask there, since they want an RLE for every frame.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .. import rle


def track_annotation(
    annotation_id: int,
    video: Mapping[str, Any],
    category_id: int,
    segmentations: Sequence[dict | None],
    score: float | None = None,
) -> dict:
    """Return a track as an entry of 'annotations', with None where the object is absent.

    Args:
        annotation_id: the id of the entry.
        video: the entry of 'videos' that the track belongs to.
        category_id: the id of its category.
        segmentations: the compressed RLE, or None, of each frame.
        score: of a track that a model found; None leaves the key out.
    """
    present = [segmentation for segmentation in segmentations if segmentation]
    boxes, areas = iter(rle.boxes(present).tolist()), iter(rle.areas(present).tolist())
    return {
        "id": annotation_id,
        "video_id": video["id"],
        "category_id": category_id,
        **({} if score is None else {"score": score}),
        "iscrowd": 0,
        **{key: video[key] for key in ("width", "height", "length")},
        "segmentations": [segmentation or None for segmentation in segmentations],
        "bboxes": [next(boxes) if segmentation else None for segmentation in segmentations],
        "areas": [next(areas) if segmentation else None for segmentation in segmentations],
    }


def track_result(
    video_id: int,
    category_id: int,
    score: float,
    segmentations: Sequence[dict | None],
    size: tuple[int, int],
) -> dict:
    """Return a track as an entry of the results of a test server, with an empty mask where the object is absent.

    Args:
        video_id: the id of the video in the data set.
        category_id: the id of the category in the data set.
        score: of the track.
        segmentations: the compressed RLE, or None, of each frame.
        size: height and width of the video in pixels.
    """
    absent = rle.empty(size)
    return {
        "video_id": video_id,
        "category_id": category_id,
        "score": score,
        "segmentations": [segmentation or absent for segmentation in segmentations],
    }
