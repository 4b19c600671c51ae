# SPDX-License-Identifier: Apache-2.0
import copy
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from transformers_cvis.data import make_moving_shapes


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory):
    """Return a small generated data set; read-only."""
    folder = tmp_path_factory.mktemp("shapes") / "data"
    return make_moving_shapes(folder, num_train_videos=6, num_valid_videos=2, num_frames=(9, 12), size=(48, 64), seed=3)


@pytest.fixture
def cache_dir(tmp_path):
    return tmp_path / "cache"


def rectangle(height, width, top, left, bottom, right):
    """Return (RLE, box) of a filled rectangle."""
    mask = np.zeros((height, width), dtype=np.uint8, order="F")
    mask[top:bottom, left:right] = 1
    rle = mask_utils.encode(mask)
    return (
        {"size": [height, width], "counts": rle["counts"].decode()},
        [float(left), float(top), float(right - left), float(bottom - top)],
    )


class AnnotationFile:
    """Correct annotation file in `folder` for tests to damage; its pictures are in `images`."""

    folder: Path
    content: dict

    @property
    def images(self):
        return self.folder / "JPEGImages"

    def write(self, spoil=None, name="data.json"):
        content = copy.deepcopy(self.content)
        if spoil is not None:
            spoil(content)
        path = self.folder / name
        path.write_text(json.dumps(content))
        return path


class TinyFile(AnnotationFile):
    """Write YouTube-VIS data: two 20x30 videos with 4 and 3 frames."""

    def __init__(self, folder):
        self.folder = folder
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


class TinyCoco(AnnotationFile):
    """Write COCO data: three 60x80 images.

    Image 7 shows a person (polygons), a tennis racket (an RLE) and a crowd of people; image 8 a car of two polygons;
    image 9 nothing.
    """

    def __init__(self, folder):
        self.folder = folder
        self.images.mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 256, (3, 60, 80, 3), dtype=np.uint8)
        for image_id, image in zip((7, 8, 9), pixels, strict=True):
            Image.fromarray(image).save(self.images / f"{image_id}.png")
        racket, racket_box = rectangle(60, 80, 30, 50, 45, 70)
        crowd = {"size": [60, 80], "counts": [2400, 2400]}  # the right half, uncompressed as COCO's crowds are
        self.content = {
            "images": [{"id": i, "width": 80, "height": 60, "file_name": f"{i}.png"} for i in (7, 8, 9)],
            "categories": [
                {"id": 43, "name": "tennis racket", "supercategory": "sports"},
                {"id": 1, "name": "person", "supercategory": "person"},
                {"id": 3, "name": "car", "supercategory": "vehicle"},
            ],
            "annotations": [
                self._annotation(100, 7, 1, [[10, 5, 40, 5, 40, 55, 10, 55]], [10, 5, 30, 50]),
                {**self._annotation(101, 7, 1, crowd, [40, 0, 40, 60]), "iscrowd": 1},
                self._annotation(102, 7, 43, racket, racket_box),
                self._annotation(103, 8, 3, [[0, 0, 20, 0, 20, 20], [50, 40, 70, 40, 70, 50, 50, 50]], [0, 0, 70, 50]),
            ],
        }

    @staticmethod
    def _annotation(annotation_id, image_id, category_id, segmentation, box):
        return {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": category_id,
            "iscrowd": 0,
            "area": box[2] * box[3],
            "segmentation": segmentation,
            "bbox": box,
        }


@pytest.fixture
def tiny_file(tmp_path):
    return TinyFile(tmp_path)


@pytest.fixture
def tiny_coco(tmp_path):
    return TinyCoco(tmp_path / "coco")
