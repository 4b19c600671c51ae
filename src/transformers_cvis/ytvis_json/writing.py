# SPDX-License-Identifier: Apache-2.0
"""Writing of tracks as YouTube-VIS JSON, in its two forms.

An annotation of a data set has None in the frames without its object. A result for the test servers has an empty mask
there, since they require an RLE for every frame.
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
        annotation_id: id of the entry.
        video: entry of 'videos' that the track belongs to.
        category_id: id of its category.
        segmentations: compressed RLE, or None, of each frame.
        score: score of a track that a model found; None leaves the key out.
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
        video_id: id of the video in the data set.
        category_id: id of the category in the data set.
        score: score of the track.
        segmentations: compressed RLE, or None, of each frame.
        size: height and width of the video in pixels.
    """
    absent = rle.empty(size)
    return {
        "video_id": video_id,
        "category_id": category_id,
        "score": score,
        "segmentations": [segmentation or absent for segmentation in segmentations],
    }
