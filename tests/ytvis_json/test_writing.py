# SPDX-License-Identifier: Apache-2.0
import numpy as np

from transformers_cvis import rle
from transformers_cvis.ytvis_json import track_annotation, track_result

VIDEO = {"id": 4, "width": 7, "height": 5, "length": 2, "file_names": ["a/0.jpg", "a/1.jpg"]}


def visible():
    mask = np.zeros((5, 7), dtype=bool)
    mask[1:3, 2:6] = True
    return rle.encode(mask)


def test_an_absent_object_is_none_in_an_annotation():
    assert track_annotation(9, VIDEO, 3, [None, visible()]) == {
        **{"id": 9, "video_id": 4, "category_id": 3, "iscrowd": 0, "width": 7, "height": 5, "length": 2},
        "segmentations": [None, visible()],
        "bboxes": [None, [2, 1, 4, 2]],
        "areas": [None, 8],
    }


def test_an_annotation_that_was_found_has_a_score():
    assert track_annotation(9, VIDEO, 3, [None, None], score=0.25)["score"] == 0.25
    assert track_annotation(9, VIDEO, 3, [None, None])["areas"] == [None, None]


def test_an_absent_object_is_an_empty_mask_in_a_result():
    assert track_result(4, 3, 0.5, [None, visible()], (5, 7)) == {
        **{"video_id": 4, "category_id": 3, "score": 0.5},
        "segmentations": [rle.empty((5, 7)), visible()],
    }
