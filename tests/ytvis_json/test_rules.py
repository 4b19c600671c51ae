# SPDX-License-Identifier: Apache-2.0
"""Rules for content that only the evaluation reads; `validate_annotations` tests those of files."""

import numpy as np
import pytest

from transformers_cvis import rle
from transformers_cvis.ytvis_json import (
    GROUND_TRUTH,
    RESULTS,
    YTVIS,
    annotation_messages,
    file_names_messages,
    mask_structure_message,
    reference_message,
    run_lengths_message,
    structure_problems,
)

VIDEO = {"id": 1, "width": 6, "height": 4, "length": 2}


def content(**changes):
    annotation = {"id": 5, "video_id": 1, "category_id": 2, "segmentations": [None, rle.empty((4, 6))]}
    return {
        "videos": [VIDEO],
        "categories": [{"id": 2, "name": "fish"}],
        "annotations": [{**annotation, **changes}],
    }


def test_ground_truth_needs_neither_pictures_nor_boxes():
    assert list(structure_problems(content(), GROUND_TRUTH)) == []
    assert "has no 'file_names'; add it" in str(next(structure_problems(content(), YTVIS)))


def test_ground_truth_may_be_empty():
    nothing = {"videos": [], "categories": []}
    assert list(structure_problems(nothing, GROUND_TRUTH)) == []
    messages = [problem.message for problem in structure_problems(nothing, YTVIS)]
    assert messages == [
        "'videos' is empty; add at least one video.",
        "'categories' is empty; add at least one category.",
    ]


def test_a_limit_stops_the_search():
    assert len(list(structure_problems({**content(), "annotations": [3] * 9}, GROUND_TRUTH, limit=4))) == 4


def test_annotations_of_a_wrong_video_are_skipped():
    wrong = {**content(segmentations=[]), "videos": [{**VIDEO, "length": 0}]}
    (problem,) = structure_problems(wrong, GROUND_TRUTH)
    assert str(problem) == "video 1: 'length' is 0; give a positive integer."


@pytest.mark.parametrize("number", [3, "2", None, True, 2.0])
def test_references(number):
    for key in ("video_id", "category_id"):
        track = {"video_id": 2, "category_id": 2, key: number}
        message = reference_message(track, {1: VIDEO, 2: VIDEO}, {1: "fish", 2: "owl"}, RESULTS)
        assert message.startswith(f"{key} {number!r} is not in ")
    assert reference_message({"video_id": 2, "category_id": np.int64(2)}, {2: VIDEO}, {2: "owl"}, RESULTS) is None


def test_many_categories_are_given_by_their_range():
    track, names = {"video_id": 1, "category_id": 99}, {number: "name" for number in range(3, 40)}
    assert "(ids 3 to 39)" in reference_message(track, {1: VIDEO}, names, RESULTS)


@pytest.mark.parametrize("score", [None, "0.5", True, float("inf")])
def test_scores(score):
    track = {"video_id": 1, "category_id": 2, "score": score, "segmentations": [None, None]}
    assert list(annotation_messages(track, VIDEO, RESULTS)) == [f"the score is {score!r}; give a finite number."]
    assert list(annotation_messages({**track, "score": np.float32(0.5)}, VIDEO, RESULTS)) == []


def test_masks_in_memory_may_have_non_json_forms():
    counts = rle.empty((4, 6))["counts"]
    for mask in (
        {"size": (4, 6), "counts": counts},
        {"size": [4, 6], "counts": counts.encode()},
        {"size": [4, 6], "counts": list(np.array([4, 20]))},
    ):
        assert mask_structure_message(mask, (4, 6), "video") is None


def test_run_lengths():
    assert run_lengths_message([4, 20], (4, 6)) is None
    assert run_lengths_message([-4, 28], (4, 6)).startswith("the RLE covers 24 pixels")
    assert run_lengths_message("P", (4, 6)).startswith("the RLE cannot be decoded, its size [4, 6] asks for 24")


@pytest.mark.parametrize(
    ("file_names", "message"),
    [
        (["a", "b"], None),
        (["a"], "'length' is 2 but there are 1 file_names; make them agree."),
        (None, "'file_names' is not a list of strings; give one file name per frame."),
    ],
)
def test_file_names(file_names, message):
    assert next(file_names_messages({**VIDEO, "file_names": file_names}), None) == message
