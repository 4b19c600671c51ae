import copy
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from transformers_cvis.data import make_moving_shapes


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory):
    """A small generated data set; read-only."""
    folder = tmp_path_factory.mktemp("shapes") / "data"
    return make_moving_shapes(folder, num_train_videos=6, num_valid_videos=2, num_frames=(9, 12), size=(48, 64), seed=3)


@pytest.fixture
def cache_dir(tmp_path):
    return tmp_path / "cache"


def rectangle(height, width, top, left, bottom, right):
    """(RLE, box) of a filled rectangle."""
    mask = np.zeros((height, width), dtype=np.uint8, order="F")
    mask[top:bottom, left:right] = 1
    rle = mask_utils.encode(mask)
    return (
        {"size": [height, width], "counts": rle["counts"].decode()},
        [float(left), float(top), float(right - left), float(bottom - top)],
    )


class TinyFile:
    """A correct annotation file of two 20x30 videos with 4 and 3 frames, to be spoilt by tests."""

    def __init__(self, folder):
        self.folder = folder
        self.images = folder / "JPEGImages"
        videos = []
        for video_id, length in ((1, 4), (2, 3)):
            names = [f"v{video_id}/{frame:05d}.jpg" for frame in range(length)]
            videos.append({"id": video_id, "width": 30, "height": 20, "length": length, "file_names": names})
            (self.images / f"v{video_id}").mkdir(parents=True)
            for name in names:
                Image.new("RGB", (30, 20), (60, 120, 180)).save(self.images / name)
        self.content = {
            "videos": videos,
            "categories": [{"id": 3, "name": "zebra"}, {"id": 1, "name": "ape"}],
            "annotations": [
                self._annotation(10, 1, 3, [(2, 3, 9, 12), (2, 4, 9, 13), None, (2, 6, 9, 15)]),
                self._annotation(11, 1, 1, [None, (10, 10, 18, 29), (10, 9, 18, 28), (10, 8, 18, 27)]),
                self._annotation(12, 2, 1, [(0, 0, 20, 30), (5, 5, 10, 10), (5, 5, 10, 10)]),
            ],
        }

    @staticmethod
    def _annotation(annotation_id, video_id, category_id, rectangles):
        tracks = [(None, None) if corners is None else rectangle(20, 30, *corners) for corners in rectangles]
        return {
            "id": annotation_id,
            "video_id": video_id,
            "category_id": category_id,
            "iscrowd": 0,
            "segmentations": [rle for rle, _ in tracks],
            "bboxes": [box for _, box in tracks],
        }

    def write(self, spoil=None, name="data.json"):
        content = copy.deepcopy(self.content)
        if spoil is not None:
            spoil(content)
        path = self.folder / name
        path.write_text(json.dumps(content))
        return path


@pytest.fixture
def tiny_file(tmp_path):
    return TinyFile(tmp_path)
