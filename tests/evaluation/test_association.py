# SPDX-License-Identifier: Apache-2.0
"""Association on tracks with known numbers."""

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from transformers_cvis.evaluation import evaluate_association

SIZE = (24, 40)


def squares(lefts: list[int | None]) -> list[dict | None]:
    """Return per frame the RLE of an 8 x 8 square at that distance from the left, or None where it is absent."""
    segmentations = []
    for left in lefts:
        mask = np.zeros(SIZE, dtype=np.uint8, order="F")
        if left is not None:
            mask[4:12, left : left + 8] = 1
        encoded = mask_utils.encode(mask)
        absent = left is None
        segmentations.append(None if absent else {"size": list(SIZE), "counts": encoded["counts"].decode()})
    return segmentations


def compare(objects: list[list[int | None]], tracks: list[list[int | None]], **options):
    """Return the association of one video; objects and tracks are given by their place in each frame."""
    ground_truth = {
        "videos": [{"id": 1, "height": SIZE[0], "width": SIZE[1], "length": len(objects[0])}],
        "categories": [{"id": 1, "name": "square"}, {"id": 2, "name": "other"}],
        "annotations": [
            {"id": number, "video_id": 1, "category_id": 1, "iscrowd": 0, "segmentations": squares(lefts)}
            for number, lefts in enumerate(objects, 1)
        ],
    }
    results = [
        {"video_id": 1, "category_id": 2, "score": 0.5, "segmentations": squares(lefts)} for lefts in tracks
    ]  # of another class, which is ignored
    return evaluate_association(ground_truth, results, **options)


def test_perfect_tracks():
    objects = [[0, 1, None, 3], [20, 20, 20, 20]]
    result = compare(objects, objects[::-1])
    assert (result.association_accuracy, result.detection_accuracy, result.idf1) == (1, 1, 1)
    assert result.switches == 0


def test_tracks_that_swap_their_objects_half_way():
    """Two objects, four frames, each track two frames with each: 2 of 6 frames of track and object agree."""
    result = compare([[0, 0, 0, 0], [20, 20, 20, 20]], [[0, 0, 20, 20], [20, 20, 0, 0]])
    assert result.detection_accuracy == 1
    assert result.association_accuracy == pytest.approx(2 / 6)
    assert result.idf1 == pytest.approx(2 * 4 / 16)
    assert result.switches == 2


def test_a_track_that_breaks_and_one_that_is_lost():
    """Object one: three frames by the first track, then one by the second. Object two: never found."""
    result = compare([[0, 0, 0, 0], [20, 20, 20, 20]], [[0, 0, 0, None], [None, None, None, 0]])
    assert result.detection_accuracy == pytest.approx(4 / 8)
    assert result.association_accuracy == pytest.approx((3 * 3 / 4 + 1 * 1 / 4) / 4)
    assert result.idf1 == pytest.approx(2 * 3 / 12)
    assert result.switches == 1


def test_returning_object_should_keep_its_track():
    objects = [[0, 0, None, None, 0, 0]]
    kept = compare(objects, [[0, 0, None, None, 0, 0]])
    split = compare(objects, [[0, 0, None, None, None, None], [None, None, None, None, 0, 0]])
    assert (kept.association_accuracy, kept.switches) == (1, 0)
    assert (split.association_accuracy, split.switches) == (0.5, 1)
    assert kept.detection_accuracy == split.detection_accuracy == 1


def test_false_masks_and_the_iou_threshold():
    objects, tracks = [[0, 0]], [[0, 2], [20, 20]]  # two pixels off: IoU 6 / 10
    result = compare(objects, tracks)
    assert result.detection_accuracy == pytest.approx(2 / 4)
    assert result.association_accuracy == 1
    strict = compare(objects, tracks, iou_threshold=0.7)
    assert strict.detection_accuracy == pytest.approx(1 / 5)
    assert strict.association_accuracy == pytest.approx(1 / 3)


def test_videos_count_by_their_masks():
    """All found masks of all videos are averaged together."""
    ground_truth = {
        "videos": [{"id": n, "height": SIZE[0], "width": SIZE[1], "length": length} for n, length in ((1, 1), (2, 3))],
        "categories": [{"id": 1, "name": "square"}],
        "annotations": [
            {"id": n, "video_id": n, "category_id": 1, "segmentations": squares([0] * length)}
            for n, length in ((1, 1), (2, 3))
        ],
    }
    tracks = [(1, [0]), (2, [0, 0, None]), (2, [None, None, 0])]
    results = [{"video_id": n, "category_id": 1, "score": 1.0, "segmentations": squares(lefts)} for n, lefts in tracks]
    result = evaluate_association(ground_truth, results)
    assert result.association_accuracy == pytest.approx((1 + 2 * 2 / 3 + 1 / 3) / 4)
    assert result.detection_accuracy == 1


def test_a_long_video():
    """The video has more frames than pycocotools counts in a byte."""
    result = compare([[0] * 300], [[0] * 300])
    assert (result.association_accuracy, result.detection_accuracy, result.idf1) == (1, 1, 1)


def test_nothing_found():
    result = compare([[0, 0]], [])
    assert (result.association_accuracy, result.detection_accuracy, result.idf1) == (0, 0, 0)
    assert result.switches == 0


def test_bad_input():
    with pytest.raises(ValueError, match=r"`iou_threshold` must be in \(0, 1\], got 50"):
        compare([[0]], [[0]], iou_threshold=50)
    with pytest.raises(ValueError, match="track 0, video 1: the annotation is longer than its video: 2 segmentations"):
        compare([[0]], [[0, 0]])
