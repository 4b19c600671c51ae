# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from transformers_cvis.data import validate_ytvis
from transformers_cvis.processing import Track, VideoSegmentation, tracks_to_ytvis_json, videos_to_ytvis_json
from transformers_cvis.rle import decode, empty, encode

RLE = {"size": [4, 6], "counts": "05S1"}


def track(label="dog", label_id=1, segmentations=(None, RLE)):
    return Track(0.5, label_id, label, 3, list(segmentations), [None, (0, 0, 1, 1)])


def test_results():
    (result,) = json.loads(json.dumps(tracks_to_ytvis_json([track()], video_id=7, size=(4, 6))))
    assert {**result, "segmentations": None} == {
        "video_id": 7,
        "category_id": 2,
        "score": 0.5,
        "segmentations": None,
    }
    assert result["segmentations"] == [empty((4, 6)), RLE]
    assert not np.any(decode(result["segmentations"][0]))


def test_category_names_give_the_ids():
    (result,) = tracks_to_ytvis_json([track()], 7, (4, 6), category_ids={"cat": 11, "dog": 26})
    assert result["category_id"] == 26


def test_unknown_label():
    with pytest.raises(ValueError, match="The label 'dog' is not a category of the data set, .* are cat, cow"):
        tracks_to_ytvis_json([track()], 7, (4, 6), category_ids={"cow": 1, "cat": 2})


def test_masks_of_another_size():
    with pytest.raises(ValueError, match=r"has masks of \(4, 6\) in a video of \(6, 4\)"):
        tracks_to_ytvis_json([track()], 7, (6, 4))


def test_videos_make_a_file_of_their_own(tmp_path):
    mask = encode(np.eye(4, 6, dtype=bool))
    segmentation = VideoSegmentation([track(segmentations=(None, mask))], size=(4, 6), num_frames=2, fps=10.0)
    content = videos_to_ytvis_json([(1, "a.mp4", segmentation), (2, "b.mp4", segmentation)], {1: "dog", 0: "cat"})
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert content["videos"][1] == {
        **{"id": 2, "name": "b.mp4", "fps": 10.0, "height": 4, "width": 6, "length": 2},
        "file_names": ["b.mp4#0", "b.mp4#1"],
    }
    first, second = content["annotations"]
    assert (first["id"], second["id"], second["video_id"], second["category_id"], second["score"]) == (1, 2, 2, 2, 0.5)
    assert second["segmentations"] == [None, mask]
    assert second["bboxes"] == [None, [0, 0, 4, 4]]
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert validate_ytvis(tmp_path / "results.json") == []
