import numpy as np
from pycocotools import mask as mask_utils

from transformers_cvis.data.annotation_files import encode_mask, track_annotation


def test_masks_are_encoded():
    mask = np.zeros((5, 7), dtype=bool)
    assert encode_mask(mask) is None
    mask[1:3, 2:6] = True
    rle = encode_mask(mask)
    assert rle["size"] == [5, 7] and isinstance(rle["counts"], str)
    np.testing.assert_array_equal(mask_utils.decode(rle).astype(bool), mask)


def test_track_annotation():
    mask = np.zeros((5, 7), dtype=bool)
    mask[1:3, 2:6] = True
    video = {"id": 4, "width": 7, "height": 5, "length": 2, "file_names": ["a/0.jpg", "a/1.jpg"]}
    assert track_annotation(9, video, 3, [None, encode_mask(mask)]) == {
        **{"id": 9, "video_id": 4, "category_id": 3, "iscrowd": 0, "width": 7, "height": 5, "length": 2},
        "segmentations": [None, encode_mask(mask)],
        "bboxes": [None, [2, 1, 4, 2]],
        "areas": [None, 8],
    }
