# SPDX-License-Identifier: Apache-2.0
"""Prediction over a data set with a stand-in model: classes by name, frames from their folder, refused input."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from transformers_cvis.evaluation import evaluate_ytvis, predict_dataset
from transformers_cvis.processing import CvisVideoProcessor

HEIGHT, WIDTH, LENGTH = 32, 64, 3


class BrightnessModel:
    """One query per class; masks are the bright pixels, the class of query 0 is certain."""

    is_online = True
    device, dtype, training = torch.device("cpu"), torch.float32, False

    def __init__(self, labels):
        self.config = SimpleNamespace(id2label=dict(enumerate(labels)), clip_length=2)

    def eval(self):
        return self

    def train(self, mode=True):
        return self

    def stream(self, clips):
        for clip in clips:
            brightness = clip.mean(dim=2)  # (1, frames, height, width)
            masks = torch.nn.functional.avg_pool2d(brightness, 4)[:, None].expand(-1, 2, -1, -1, -1)
            class_logits = torch.tensor([[[4.0, 0.0, 0.0], [0.0, 0.0, 4.0]]])
            yield SimpleNamespace(class_queries_logits=class_logits, masks_queries_logits=masks)


@pytest.fixture
def data_set(tmp_path):
    """Write one video with a bright square that does not move."""
    names = [f"video/{frame:05d}.png" for frame in range(LENGTH)]
    (tmp_path / "video").mkdir()
    frame = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    frame[8:24, 16:40] = 255
    for name in names:
        Image.fromarray(frame).save(tmp_path / name)
    square = [[16, 8, 40, 8, 40, 24, 16, 24]]
    return tmp_path, {
        "videos": [{"id": 4, "height": HEIGHT, "width": WIDTH, "length": LENGTH, "file_names": names}],
        "categories": [{"id": 9, "name": "owl"}, {"id": 3, "name": "fish"}],
        "annotations": [{"id": 1, "video_id": 4, "category_id": 3, "iscrowd": 0, "segmentations": [square] * LENGTH}],
    }


@pytest.fixture
def processor():
    return CvisVideoProcessor(size={"shortest_edge": HEIGHT})


def test_labels_become_category_ids_by_name(data_set, processor):
    folder, ground_truth = data_set
    results = predict_dataset(BrightnessModel(["fish", "owl"]), processor, ground_truth, folder, top_k=1)
    assert [(track["video_id"], track["category_id"]) for track in results] == [(4, 3)]
    assert len(results[0]["segmentations"]) == LENGTH
    result = evaluate_ytvis(ground_truth, results)
    assert result.ious[4, 3].item() > 0.8
    assert result.summary["AP50"] == pytest.approx(1)


def test_labels_that_the_data_set_does_not_have_are_refused(data_set, processor):
    folder, ground_truth = data_set
    with pytest.raises(ValueError, match="labels 'cat' are not categories of the data set, which has 'fish', 'owl'"):
        predict_dataset(BrightnessModel(["fish", "cat"]), processor, ground_truth, folder)


def test_a_missing_frame_is_named(data_set, processor):
    folder, ground_truth = data_set
    (folder / "video" / "00001.png").unlink()
    with pytest.raises(FileNotFoundError, match="00001.png.* of video 4 is missing"):
        predict_dataset(BrightnessModel(["fish", "owl"]), processor, ground_truth, folder)


def test_frames_of_a_size_other_than_in_the_json_are_refused(data_set, processor):
    folder, ground_truth = data_set
    ground_truth["videos"][0]["width"] = 60
    with pytest.raises(ValueError, match=r"frames of video 4 are \(32, 64\).* but the json gives \(32, 60\)"):
        predict_dataset(BrightnessModel(["fish", "owl"]), processor, ground_truth, folder)


def test_file_names_must_match_the_length(data_set, processor):
    folder, ground_truth = data_set
    ground_truth["videos"][0]["file_names"].pop()
    with pytest.raises(ValueError, match="video 4: 'length' is 3 but there are 2 file_names"):
        predict_dataset(BrightnessModel(["fish", "owl"]), processor, ground_truth, folder)
