# SPDX-License-Identifier: Apache-2.0
"""Zip files for the test servers: their content, and no file after an error."""

import json
import zipfile

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from transformers_cvis.evaluation import write_submission

VIDEOS = {
    "videos": [{"id": 3, "height": 6, "width": 8, "length": 2}],
    "categories": [{"id": 2, "name": "fish"}],
}


def result(**changes):
    mask = mask_utils.encode(np.asfortranarray(np.eye(6, 8, dtype=np.uint8)))  # counts as bytes
    return {"video_id": 3, "category_id": 2, "score": 0.5, "segmentations": [mask, None], **changes}


def test_a_zip_holds_json_with_a_mask_for_every_frame(tmp_path):
    write_submission([result()], VIDEOS, tmp_path / "submission.zip")
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert archive.namelist() == ["results.json"]
        (track,) = json.loads(archive.read("results.json"))
    assert (track["video_id"], track["category_id"], track["score"]) == (3, 2, 0.5)
    decoded = [mask_utils.decode(mask) for mask in track["segmentations"]]
    np.testing.assert_array_equal(decoded[0], np.eye(6, 8))
    np.testing.assert_array_equal(decoded[1], np.zeros((6, 8)))
    assert list(tmp_path.iterdir()) == [tmp_path / "submission.zip"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video_id": 4}, "video_id 4"),
        ({"category_id": 0}, "category_id 0"),
        ({"segmentations": [None] * 3}, "longer than its video"),
        ({"segmentations": [{"size": [8, 6], "counts": "0"}, None]}, r"size \[8, 6\] but the video is \[6, 8\]"),
        ({"score": None}, "the score is None"),
    ],
)
def test_results_that_do_not_fit_write_nothing(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        write_submission([result(), result(**changes)], VIDEOS, tmp_path / "submission.zip")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(OSError, match="Cannot write .*absent"):
        write_submission([result()], VIDEOS, tmp_path / "absent" / "submission.zip")
