# SPDX-License-Identifier: Apache-2.0
"""Splits of annotated videos: stratified, seeded, recorded."""

import hashlib
import json

import numpy as np
import pytest

from transformers_cvis.data import is_split_of, split_ytvis


def write_json(path, classes_of_video: dict[int, set[int]], num_categories: int):
    annotations = [
        {
            "id": 100 * video + category,
            "video_id": video,
            "category_id": category,
            "iscrowd": 0,
            "segmentations": [None],
            "bboxes": [None],
        }
        for video, classes in classes_of_video.items()
        for category in classes
    ]
    content = {
        "info": {"year": 2019},
        "videos": [
            {"id": video, "width": 8, "height": 8, "length": 1, "file_names": [f"{video}.jpg"]}
            for video in classes_of_video
        ],
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, num_categories + 1)],
        "annotations": annotations,
    }
    path.write_text(json.dumps(content))
    return path


def random_set(num_videos: int = 300, num_categories: int = 12) -> dict[int, set[int]]:
    """Build videos with zero to three classes, some classes in every third video, others in a few."""
    rng = np.random.default_rng(0)
    frequency = 1 / np.arange(1, num_categories + 1) ** 1.5
    return {
        video: set(
            rng.choice(num_categories, size=rng.integers(0, 4), replace=False, p=frequency / frequency.sum()) + 1
        )
        for video in range(1, num_videos + 1)
    }


def videos_of(path) -> set[int]:
    return {video["id"] for video in json.loads(path.read_text())["videos"]}


def test_every_class_is_shared_out(tmp_path):
    classes_of_video = {video: {int(c) for c in classes} for video, classes in random_set().items()}
    source = write_json(tmp_path / "all.json", classes_of_video, 12)
    train, test = split_ytvis(source, tmp_path / "split", test_share=0.25, seed=3)
    assert (train.name, test.name) == ("train_split.json", "test_split.json")
    assert videos_of(train) | videos_of(test) == set(classes_of_video)
    assert not videos_of(train) & videos_of(test)
    for category in range(1, 13):
        holding = {video for video, classes in classes_of_video.items() if category in classes}
        in_test = len(holding & videos_of(test))
        assert 1 <= in_test <= len(holding) - 1
        assert abs(in_test - 0.25 * len(holding)) <= 2, category
    empty = {video for video, classes in classes_of_video.items() if not classes}
    assert abs(len(empty & videos_of(test)) - 0.25 * len(empty)) <= 1


def test_the_seed_and_the_content_decide(tmp_path):
    source = write_json(tmp_path / "all.json", {v: {int(c) for c in cs} for v, cs in random_set(60).items()}, 12)
    first, again, other = (
        videos_of(split_ytvis(source, tmp_path / name, seed=seed)[1]) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again
    assert first != other


def test_parts_hold_their_videos_and_record_their_source(tmp_path):
    source = write_json(tmp_path / "all.json", {1: {1}, 2: {1}, 3: {2}, 4: {2}, 5: {3}}, 3)
    whole = json.loads(source.read_text())
    for name, path in zip(("train", "test"), split_ytvis(source, tmp_path / "split", 0.5), strict=True):
        part = json.loads(path.read_text())
        ids = {video["id"] for video in part["videos"]}
        assert part["videos"] == [video for video in whole["videos"] if video["id"] in ids]
        assert part["annotations"] == [row for row in whole["annotations"] if row["video_id"] in ids]
        assert part["categories"] == whole["categories"]
        assert part["info"]["year"] == 2019
        split = part["info"]["split"]
        assert split == {
            **{"part": name, "source": "all.json", "test_share": 0.5, "seed": 0, "video_ids": sorted(ids)},
            "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        }
        assert {1, 2} & ids
        assert {3, 4} & ids
    assert 5 in videos_of(tmp_path / "split" / "train_split.json")  # a single video is for training


def test_a_split_is_known_by_its_record(tmp_path):
    source = write_json(tmp_path / "all.json", {1: {1}, 2: {1}, 3: {2}, 4: {2}}, 2)
    assert not is_split_of(tmp_path / "split", source, 0.5, 3)
    train, _ = split_ytvis(source, tmp_path / "split", 0.5, 3)
    assert is_split_of(tmp_path / "split", source, 0.5, 3)
    assert not is_split_of(tmp_path / "split", source, 0.4, 3)
    assert not is_split_of(tmp_path / "split", source, 0.5, 4)
    record = train.read_text()
    train.write_text(source.read_text())  # the whole source is not a part
    assert not is_split_of(tmp_path / "split", source, 0.5, 3)
    train.write_text(record)
    write_json(source, {1: {1}, 2: {2}, 3: {2}, 4: {1}}, 2)
    assert not is_split_of(tmp_path / "split", source, 0.5, 3)
    train.unlink()
    assert not is_split_of(tmp_path / "split", source, 0.5, 3)


def test_bad_sources_of_a_split_are_refused(tmp_path):
    source = write_json(tmp_path / "all.json", {1: {1}, 2: {1}}, 1)
    for share in (0, 1, -0.1, 20):
        with pytest.raises(ValueError, match=f"test_share is {share}; give a share of the videos between 0 and 1"):
            split_ytvis(source, tmp_path / "split", share)
    for classes_of_video in ({1: {1}}, {1: {1}, 2: {2}}, {1: set()}):
        with pytest.raises(
            ValueError, match="few.json: No video can be held out, because every class is in one video only"
        ):
            split_ytvis(write_json(tmp_path / "few.json", classes_of_video, 2), tmp_path / "split")
    with pytest.raises(FileNotFoundError, match="absent.json does not exist"):
        split_ytvis(tmp_path / "absent.json", tmp_path / "split")
    (tmp_path / "broken.json").write_text('{"videos": [], "categories": []}')
    with pytest.raises(ValueError, match="(?s)breaks the YouTube-VIS format:.*'videos' is empty"):
        split_ytvis(tmp_path / "broken.json", tmp_path / "split")
    assert not (tmp_path / "split").exists()
