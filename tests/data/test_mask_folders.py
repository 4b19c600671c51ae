# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from transformers_cvis.data import load_ytvis, read_mask_folders, validate_ytvis
from transformers_cvis.data.mask_folders import read_class_file


class MaskFolders:
    """Write frames and masks of two 20x30 videos; the dog of `park` leaves, and one of its frames lacks a mask."""

    def __init__(self, folder):
        self.folder, self.frames, self.masks = folder, folder / "JPEGImages", folder / "Annotations"
        ids = np.zeros((3, 20, 30), dtype=np.uint8)
        ids[:2, 2:9, 3:12] = 1
        ids[:, 10:18, 10:28] = 2
        self.write("park", ids)
        (self.frames / "park" / "00001a.jpg").write_bytes((self.frames / "park" / "00000.jpg").read_bytes())
        ids = np.zeros((2, 20, 30), dtype=np.uint8)
        ids[:, 5:9, 5:9] = 1
        self.write("cat_02", ids, mode="L")
        self.classes = {"park": {"1": "dog", "2": "person"}, "cat_02": {"1": "cat"}}

    def write(self, name, ids, mode="P"):
        for folder in (self.frames / name, self.masks / name):
            folder.mkdir(parents=True)
        for number, frame in enumerate(ids):
            Image.new("RGB", (frame.shape[1], frame.shape[0]), (90, 60, 30)).save(
                self.frames / name / f"{number:05d}.jpg"
            )
            image = Image.fromarray(frame)
            if mode == "P":
                image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
            image.save(self.masks / name / f"{number:05d}.png")

    def class_file(self, content=None, name="classes.json"):
        path = self.folder / name
        content = self.classes if content is None else content
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def read(self, content=None, name="classes.json"):
        return read_mask_folders(self.frames, self.masks, self.class_file(content, name))


@pytest.fixture
def folders(tmp_path):
    return MaskFolders(tmp_path)


def names(content):
    """Return the class names of the annotations, video by video."""
    category = {category["id"]: category["name"] for category in content["categories"]}
    return [category[annotation["category_id"]] for annotation in content["annotations"]]


def test_masks_become_tracks(folders, tmp_path, cache_dir):
    content = folders.read()
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "person"}]
    cat, park = content["videos"]
    assert cat["file_names"] == ["cat_02/00000.jpg", "cat_02/00001.jpg"]
    assert park == {
        **{"id": 2, "width": 30, "height": 20, "length": 3},
        "file_names": [f"park/{number:05d}.jpg" for number in range(3)],  # the frame without a mask is left out
    }
    assert names(content) == ["cat", "dog", "person"]
    dog = content["annotations"][1]
    assert dog["video_id"] == 2
    assert dog["segmentations"][2] is dog["bboxes"][2] is None
    assert dog["bboxes"][0] == [3, 2, 9, 7]
    expected = np.zeros((20, 30), dtype=np.uint8)
    expected[2:9, 3:12] = 1
    np.testing.assert_array_equal(mask_utils.decode(dog["segmentations"][1]), expected)

    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    assert validate_ytvis(path, folders.frames) == []
    assert len(load_ytvis(path, folders.frames, cache_dir=cache_dir)) == 2


def test_forms_of_class_files(folders):
    expected = {"park": {1: "dog", 2: "person"}, "cat_02": {1: "cat"}}
    youtube_vos = {
        "videos": {
            name: {"objects": {number: {"category": label, "frames": ["00000"]} for number, label in ids.items()}}
            for name, ids in folders.classes.items()
        }
    }
    table = "\ufeffvideo,id,class\npark,1,dog\npark,2,person\ncat_02,1,cat\n"
    for content, name in ((folders.classes, "a.json"), (youtube_vos, "meta.json"), (table, "a.csv")):
        assert read_class_file(folders.class_file(content, name)) == expected
    assert names(folders.read({"park": "animal", "cat_02": {"1": "cat"}})) == ["cat", "animal", "animal"]


def test_ids_can_be_left_out(folders):
    assert names(folders.read({"park": {"1": "dog", "2": None}, "cat_02": {"1": None}})) == ["dog"]
    assert names(folders.read("video,id,class\npark,1,dog\npark,2,\ncat_02,1,\n", "a.csv")) == ["dog"]
    with pytest.raises(ValueError, match="No instance in the masks of .*Annotations has a class"):
        folders.read({"park": {"1": None, "2": None}, "cat_02": {"1": None}})


def test_folder_name_is_the_class(folders):
    assert names(read_mask_folders(folders.frames, folders.masks)) == ["cat", "park", "park"]
    ids = np.full((1, 8, 8), 255, dtype=np.uint8)  # foreground is white, as in DAVIS 2016
    for name in ("horse/0001", "horse/0002", "black swan-7"):
        folders.write(name, ids, mode="L")
    content = read_mask_folders(folders.frames, folders.masks)
    assert names(content) == ["black swan", "cat", "horse", "horse", "park", "park"]
    assert content["videos"][2]["file_names"] == ["horse/0001/00000.jpg"]
    folders.write("0003", ids)
    with pytest.raises(ValueError, match="The folder name of video 0003 does not contain a class; give a class file"):
        read_mask_folders(folders.frames, folders.masks)


def test_ids_beyond_a_byte(folders):
    ids = np.zeros((20, 30), dtype=np.uint16)
    ids[3:5, 3:5] = 700
    Image.fromarray(ids).save(folders.masks / "cat_02" / "00000.png")
    assert names(folders.read({**folders.classes, "cat_02": {"700": "cat", "1": "kitten"}})) == [
        *("kitten", "cat", "dog", "person"),
    ]


def test_ids_without_a_class_are_named(folders):
    with pytest.raises(
        ValueError, match=r"classes.json has no class for id 2 of video park \(first in 00000.png\). Add"
    ):
        folders.read({"park": {"1": "dog"}, "cat_02": "cat"})
    with pytest.raises(
        ValueError, match="no class for id 1 of video cat_02 .*, id 1 of video park .*, id 2 of video park"
    ):
        folders.read({"Park": "dog"})


def test_masks_that_do_not_fit_their_frames(folders):
    mask = folders.masks / "park" / "00001.png"
    Image.new("L", (15, 10)).save(mask)
    with pytest.raises(ValueError, match=r"00001.png is 10x15 .* but its frame 00001.jpg is 20x30; save masks at the"):
        folders.read()
    Image.new("RGB", (30, 20)).save(mask)
    with pytest.raises(ValueError, match=r"00001.png is a colour picture \(mode RGB\); expected a palette or grey PNG"):
        folders.read()
    mask.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="The mask .*00001.png cannot be read .*; replace it"):
        folders.read()
    Image.new("L", (30, 20)).save(mask)
    frame = folders.frames / "park" / "00001.jpg"
    Image.new("RGB", (15, 10)).save(frame)
    with pytest.raises(
        ValueError, match="00001.jpg is 10x15 .*, those before it are 20x30; all frames of a video must"
    ):
        folders.read()
    frame.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="The frame .*00001.jpg is not a readable picture"):
        folders.read()
    frame.unlink()
    with pytest.raises(FileNotFoundError, match=r"The mask .*00001.png has no frame 00001.\* in .*park"):
        folders.read()


def test_missing_folders(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="The folder .*nowhere does not exist"):
        read_mask_folders(folders.frames, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="No mask found in .*empty: expected a folder per video"):
        read_mask_folders(folders.frames, tmp_path / "empty")
    with pytest.raises(ValueError, match="park holds masks directly; expected a folder per video"):
        read_mask_folders(folders.frames, folders.masks / "park")
    with pytest.raises(
        FileNotFoundError, match="Video cat_02 has masks in .*Annotations/cat_02 but no frames in .*empty"
    ):
        read_mask_folders(tmp_path / "empty", folders.masks)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("{", "a.json", "a.json is not valid json .*; it must be json, or end in .csv"),
        ([], "a.json", r'a.json must look like \{"video": \{"1": "dog"\}\}'),
        ({"park": 3}, "a.json", "video park has 3; give a class, or a class per id"),
        ({"park": {"one": "dog"}}, "a.json", "video park has the id 'one'; give a whole number"),
        ({"park": {"1": 7}}, "a.json", "id 1 of video park has the class 7; give a string"),
        ("video,class\npark,dog\n", "a.csv", "a.csv lacks the column id; its first line must be video,id,class"),
        ("", "a.csv", "lacks the column class, id, video"),
        ("video,id,class\npark,x,dog\n", "a.csv", "video park has the id 'x'"),
    ],
)
def test_broken_class_files(folders, content, name, message):
    with pytest.raises(ValueError, match=message):
        folders.read(content, name)


def test_missing_class_file(folders):
    with pytest.raises(FileNotFoundError, match="The class file .*absent.json does not exist"):
        read_mask_folders(folders.frames, folders.masks, folders.folder / "absent.json")
