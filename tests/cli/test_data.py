# SPDX-License-Identifier: Apache-2.0
"""`transformers-cvis validate`, `import-data`, `split-data` and `make-data`."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from tests.support.command_line import error_line, run
from transformers_cvis.data import validate_annotations, validate_ytvis


def test_validate_lists_problems_with_their_ids(shapes, tmp_path, capsys):
    assert run("validate", shapes / "train.json", "--images", shapes / "JPEGImages") == 0
    assert "no problem found" in capsys.readouterr().out
    content = json.loads((shapes / "train.json").read_text())
    content["annotations"][0]["category_id"] = 999
    (tmp_path / "broken.json").write_text(json.dumps(content))
    assert run("validate", tmp_path / "broken.json") == 1
    assert "annotation 1: category_id 999" in capsys.readouterr().out


def write_masks(shapes, folder):
    """Write the masks of two videos as PNGs of ids, one class per id, and return them."""
    content = json.loads((shapes / "valid.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    classes = {}
    for video in content["videos"]:
        annotations = [entry for entry in content["annotations"] if entry["video_id"] == video["id"]]
        for frame, file_name in enumerate(video["file_names"]):
            ids = np.zeros((video["height"], video["width"]), dtype=np.uint8)
            for number, annotation in enumerate(annotations, start=1):
                if annotation["segmentations"][frame]:
                    ids[mask_utils.decode(annotation["segmentations"][frame]) > 0] = number
            path = (folder / file_name).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(ids).save(path)
        numbered = enumerate(annotations, start=1)
        classes[path.parent.name] = {number: names[entry["category_id"]] for number, entry in numbered}
    (folder / "classes.json").write_text(json.dumps(classes))
    return folder, folder / "classes.json"


def test_import_of_masks(shapes, tmp_path, capsys):
    masks, classes = write_masks(shapes, tmp_path / "masks")
    train, valid = tmp_path / "new" / "train.json", tmp_path / "new" / "valid.json"
    frames = ("--frames", shapes / "JPEGImages")
    assert run("import-data", "masks", masks, *frames, "--classes", classes, "--out", train) == 0
    assert re.search(r"train.json: 2 videos, 8 frames; objects: \w+ \d", capsys.readouterr().out)
    assert validate_annotations(train, shapes / "JPEGImages") == []
    assert run("import-data", "masks", masks, *frames, "--out", train) == 1
    assert "train.json exists already" in error_line(capsys)
    arguments = ("--out", train, "--valid", valid, "--overwrite")  # without --classes the folder names are the classes
    assert run("import-data", "masks", masks, *frames, *arguments) == 0
    assert "train.json: 1 videos" in (out := capsys.readouterr().out)
    assert "valid.json: 1 videos" in out
    for path in (train, valid):
        assert [category["name"] for category in json.loads(path.read_text())["categories"]] == ["valid"]
        assert validate_annotations(path, shapes / "JPEGImages") == []


def test_import_of_coco(shapes, tmp_path, capsys):
    image = {"id": 1, "width": 64, "height": 48, "file_name": "valid_00000/00000.jpg"}
    annotation = {"id": 5, "image_id": 1, "category_id": 1, "iscrowd": 0}
    annotation |= {"segmentation": [[0, 0, 9, 0, 9, 9]], "bbox": [0, 0, 9, 9]}
    content = {"images": [image], "categories": [{"id": 1, "name": "dog"}], "annotations": [annotation]}
    coco, out = tmp_path / "coco.json", tmp_path / "valid.json"
    coco.write_text(json.dumps(content))
    assert run("validate", coco, "--images", shapes / "JPEGImages") == 0
    assert run("import-data", "coco", coco, "--out", out) == 0
    assert "valid.json: 1 videos, 1 frames; objects: dog 1" in capsys.readouterr().out
    assert validate_ytvis(out, shapes / "JPEGImages") == []
    annotation["image_id"] = 2
    coco.write_text(json.dumps(content))
    assert run("import-data", "coco", coco, "--out", out, "--overwrite") == 1
    assert "image 2, annotation 5: image_id 2 is not in" in error_line(capsys)
    assert json.loads(out.read_text())["videos"]  # the file from before the failed command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["masks", "masks", "--out", "a.json"], "Masks need their frames: give the folder with --frames"),
        (["coco", "coco.json", "--out", "a.json", "--valid", "b.json"], "--valid are for masks: leave them out"),
        (
            ["masks", "m", "--frames", "f", "--out", "a.json", "--valid", "a.json"],
            "--out and --valid are the same file",
        ),
    ],
)
def test_import_fails_in_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("import-data", *arguments) == 1
    assert message in error_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_make_data_writes_a_valid_data_set(tmp_path, capsys):
    folder = tmp_path / "shapes"
    sizes = ("--train-videos", 2, "--valid-videos", 1, "--frames", 3, "--size", "32x48")
    assert run("make-data", "moving-shapes", folder, *sizes) == 0
    assert validate_ytvis(folder / "train.json", folder / "JPEGImages") == []
    assert run("make-data", "moving-shapes", folder, *sizes) == 1
    assert "exists and is not an empty folder" in error_line(capsys)
    assert run("make-data", "moving-shapes", tmp_path / "two", *sizes, "--categories", 2) == 0
    categories = json.loads((tmp_path / "two" / "valid.json").read_text())["categories"]
    assert [category["name"] for category in categories] == ["circle", "square"]
    assert run("make-data", "moving-shapes", tmp_path / "many", *sizes, "--categories", 11) == 1
    assert "--categories 11: give at most 10" in error_line(capsys)


def test_split_data(shapes, tmp_path, capsys):
    content = json.loads((shapes / "valid.json").read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] = 1
    source = tmp_path / "all.json"
    source.write_text(json.dumps(content))
    assert run("split-data", source, "--out", tmp_path / "splits", "--test-share", 0.5) == 0
    out = capsys.readouterr().out
    assert "train_split.json: 1 videos, 4 frames" in out
    assert "test_split.json: 1 videos" in out
    assert run("split-data", source, "--out", tmp_path / "splits") == 1
    assert "train_split.json" in (line := error_line(capsys))
    assert "exists already" in line
    assert run("split-data", source, "--out", tmp_path / "new", "--test-share", 0) == 1
    assert "test_share is 0.0; give a share" in error_line(capsys)
