# SPDX-License-Identifier: Apache-2.0
import json
import os
import pickle

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from transformers_cvis.data import class_names, find_image_root, load_ytvis, ytvis


def load(tiny_file, cache_dir, spoil=None, **arguments):
    return load_ytvis(tiny_file.write(spoil), tiny_file.images, cache_dir=cache_dir, **arguments)


def test_rows(tiny_file, cache_dir):
    dataset = load(tiny_file, cache_dir)
    assert class_names(dataset) == ["ape", "zebra"]  # in the order of the category ids 1 and 3
    assert dataset["video_id"][:] == [1, 2]
    row = dataset[0]
    assert (row["height"], row["width"], row["length"]) == (20, 30, 4)
    assert all(os.path.isabs(name) and os.path.exists(name) for name in row["file_names"])
    zebra, ape = row["annotations"]
    assert (zebra["id"], zebra["category_id"], zebra["label"], zebra["iscrowd"]) == (10, 3, 1, False)
    assert (ape["id"], ape["category_id"], ape["label"]) == (11, 1, 0)
    assert zebra["segmentations"][2] is None
    assert zebra["boxes"][2] is None
    assert zebra["boxes"][0] == [3, 2, 9, 7]
    original = tiny_file.content["annotations"][0]["segmentations"][0]
    assert zebra["segmentations"][0] == original["counts"]


def test_frames_without_box_or_without_mask_are_dropped(tiny_file, cache_dir):
    def spoil(content):
        content["annotations"][0]["bboxes"][0] = None
        content["annotations"][0]["bboxes"][1] = []
        content["annotations"][0]["segmentations"][3] = []

    annotation = load(tiny_file, cache_dir, spoil)[0]["annotations"][0]
    assert annotation["segmentations"] == annotation["polygons"] == annotation["boxes"] == [None] * 4


def test_mask_formats(tiny_file, cache_dir):
    """RLEs of every form become compressed counts; valid polygons stay polygons, others are dropped."""
    mask = np.zeros((20, 30), dtype=np.uint8, order="F")
    mask[3:9, 4:10] = 1
    counts = mask_utils.encode(mask)["counts"].decode()
    runs = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(mask.ravel("F"))) + 1, [mask.size]])).tolist()
    polygon, too_short, odd = [4, 3, 10, 3, 10, 9, 4, 9], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]
    forms = [
        ({"size": [20, 30], "counts": counts}, counts, None),
        ({"size": [20, 30], "counts": runs}, counts, None),
        ([polygon], None, [polygon]),
        ([too_short, polygon, odd], None, [polygon]),
        ([too_short, odd], None, None),
        ([], None, None),
        (None, None, None),
    ]
    for segmentation, expected_counts, expected_polygons in forms:

        def spoil(content, segmentation=segmentation):
            content["annotations"][0]["segmentations"][0] = segmentation

        annotation = load(tiny_file, cache_dir, spoil)[0]["annotations"][0]
        assert annotation["segmentations"][0] == expected_counts
        assert annotation["polygons"][0] == expected_polygons
        assert (annotation["boxes"][0] is None) == (expected_counts is expected_polygons is None)


def test_labels_are_matched_by_name(tiny_file, cache_dir):
    dataset = load(tiny_file, cache_dir, labels={0: "zebra", 1: "dog", 2: "ape"})
    assert class_names(dataset) == ["zebra", "dog", "ape"]
    assert [annotation["label"] for annotation in dataset[0]["annotations"]] == [0, 2]
    with pytest.raises(ValueError, match=r"not labels of the model: \['zebra'\]. The labels are \['ape', 'dog'\]"):
        load(tiny_file, cache_dir, labels=["ape", "dog"])


def test_json_is_parsed_again_only_after_a_change(tiny_file, cache_dir, monkeypatch):
    reads = []
    original = ytvis.read_annotations
    monkeypatch.setattr(ytvis, "read_annotations", lambda *arguments: reads.append(arguments) or original(*arguments))
    first = load(tiny_file, cache_dir)
    second = load(tiny_file, cache_dir)
    assert len(reads) == 1
    assert first[1] == second[1]
    assert first.cache_files[0]["filename"].startswith(str(cache_dir))  # memory-mapped
    assert len(pickle.dumps(first)) < 10_000  # a worker gets the path, not the rows

    def rename(content):
        content["categories"][0]["name"] = "quagga"

    assert class_names(load(tiny_file, cache_dir, rename)) == ["ape", "quagga"]
    assert len(reads) == 2
    load(tiny_file, cache_dir, rename, labels=["quagga", "ape"])
    assert len(reads) == 3
    assert not list(cache_dir.rglob("*.incomplete"))


def test_nothing_half_written_remains(tiny_file, cache_dir, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setattr(ytvis, "_rows", full_disk)
    with pytest.raises(OSError, match="No space left"):
        load(tiny_file, cache_dir)
    assert [path for path in cache_dir.rglob("*") if path.is_file()] == []


def test_files_without_annotations(tiny_file, cache_dir):
    for spoil in (lambda content: content.pop("annotations"), lambda content: content.update(annotations=None)):
        with pytest.raises(ValueError, match="has no annotations.*hold a part of train.json out"):
            load(tiny_file, cache_dir, spoil)
        dataset = load(tiny_file, cache_dir, spoil, require_annotations=False)
        assert dataset[0]["annotations"] == []
        assert len(dataset) == 2


def test_missing_files(tiny_file, cache_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match="annotation file .*nowhere.json does not exist"):
        load_ytvis(tmp_path / "nowhere.json")
    with pytest.raises(FileNotFoundError, match="image folder .*nowhere does not exist"):
        load_ytvis(tiny_file.write(), tmp_path / "nowhere", cache_dir=cache_dir)
    (tiny_file.images / "v2" / "00000.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="video 2: the frame .*v2/00000.jpg does not exist. Is .*JPEGImages"):
        load(tiny_file, cache_dir)


def test_broken_files_are_refused_with_all_problems(tiny_file, cache_dir, tmp_path):
    def spoil(content):
        content["annotations"][0]["category_id"] = 7
        content["annotations"][1]["segmentations"].append(None)

    with pytest.raises(ValueError, match=r"(?s)breaks the YouTube-VIS format.*annotation 10.*annotation 11.*validate"):
        load(tiny_file, cache_dir, spoil)
    (tmp_path / "cut.json").write_text('{"videos": [')
    with pytest.raises(ValueError, match="cut.json is not valid json .* is the file whole?"):
        load_ytvis(tmp_path / "cut.json", tiny_file.images, cache_dir=cache_dir)


def test_image_root_is_found_in_the_usual_places(tmp_path):
    annotation_file = tmp_path / "train.json"
    with pytest.raises(FileNotFoundError, match="No folder of frames found for .*train.json: looked for .* image_root"):
        find_image_root(annotation_file)
    for folder in ("train", "train/JPEGImages", "JPEGImages"):
        (tmp_path / folder).mkdir()
        assert find_image_root(annotation_file) == tmp_path / folder


def test_a_large_file_is_parsed_once(tiny_file, cache_dir, monkeypatch):
    def many(content):
        video, annotations = content["videos"][0], content["annotations"][:2]
        content["videos"] = [{**video, "id": number} for number in range(400)]
        content["annotations"] = [
            {**annotation, "id": 2 * number + part, "video_id": number}
            for number in range(400)
            for part, annotation in enumerate(annotations)
        ]

    path = tiny_file.write(many)
    load_ytvis(path, tiny_file.images, cache_dir=cache_dir)
    monkeypatch.delattr(ytvis, "read_annotations")
    dataset = load_ytvis(path, tiny_file.images, cache_dir=cache_dir)
    assert len(dataset) == 400 == len(json.loads(path.read_text())["videos"])


@pytest.mark.parametrize("name", ["mini_vis", "mini_vis_permissive"])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_real_files(clips_folder, cache_dir, name, split):
    json_path = clips_folder / name / f"{split}.json"
    content = json.loads(json_path.read_text())
    dataset = load_ytvis(json_path, cache_dir=cache_dir)
    assert len(dataset) == len(content["videos"])
    names = {category["id"]: category["name"] for category in content["categories"]}
    originals = {annotation["id"]: annotation for annotation in content["annotations"]}
    loaded = [annotation for row in dataset for annotation in row["annotations"]]
    assert len(loaded) == len(originals)
    for annotation in loaded:
        original = originals[annotation["id"]]
        assert class_names(dataset)[annotation["label"]] == names[original["category_id"]]
        assert annotation["segmentations"] == [rle and rle["counts"] for rle in original["segmentations"]]
