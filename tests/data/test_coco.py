# SPDX-License-Identifier: Apache-2.0
"""Images in COCO format: the table and the clips made of it."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils
from torch.utils.data import DataLoader

from tests.support.sample_digests import SampleDigests, sample_digest
from transformers_cvis.data import (
    ClipAugmentation,
    ClipDataset,
    LargeScaleJitter,
    MixedClipDataset,
    PseudoVideoAugmentation,
    RandomCropPath,
    VideoDataset,
    class_names,
    collate_clips,
    evaluation_resize,
    images_as_videos,
    load_coco,
    load_ytvis,
    read_annotations,
)
from transformers_cvis.processing import CvisVideoProcessor

SMALL = PseudoVideoAugmentation(
    ClipAugmentation(short_sides=(48, 64), crop=RandomCropPath(short_sides=(60, 80), window=(40, 60)))
)
AS_IT_IS = evaluation_resize(60)  # the tiny images are 60x80


@pytest.fixture
def load(tiny_coco, cache_dir):
    def load(spoil=None, **arguments):
        return load_coco(tiny_coco.write(spoil), tiny_coco.images, cache_dir=cache_dir, **arguments)

    return load


# The table


def test_rows(tiny_coco, load):
    dataset = load()
    assert class_names(dataset) == ["person", "car", "tennis racket"]  # in the order of the ids 1, 3, 43
    assert dataset["image_id"][:] == [7, 8, 9]
    assert "video_id" not in dataset.column_names
    row = dataset[0]
    assert (row["height"], row["width"], row["length"]) == (60, 80, 1)
    assert row["file_names"] == [str(tiny_coco.images / "7.png")]
    person, crowd, racket = row["annotations"]
    assert (person["id"], person["label"], person["iscrowd"]) == (100, 0, False)
    assert person["polygons"] == [[[10, 5, 40, 5, 40, 55, 10, 55]]]
    assert person["segmentations"] == [None]
    assert person["boxes"] == [[10, 5, 30, 50]]
    assert crowd["iscrowd"]
    assert racket["polygons"] == [None]
    assert racket["segmentations"] == [tiny_coco.content["annotations"][2]["segmentation"]["counts"]]
    assert dataset[2]["annotations"] == []
    assert dataset.cache_files
    assert len(pickle.dumps(dataset)) < 10_000


def test_classes_are_mapped(load, tiny_coco, cache_dir):
    ytvis_2019 = ["person", "tennis_racket", "sedan"]
    dataset = load(labels=ytvis_2019, class_mapping="ytvis2019")
    assert class_names(dataset) == ytvis_2019
    assert [a["label"] for row in dataset for a in row["annotations"]] == [0, 0, 1, 2]
    dataset = load(class_mapping={"car": "vehicle", "tennis racket": "tool"})
    assert class_names(dataset) == ["vehicle", "tool"]
    assert [len(row["annotations"]) for row in dataset] == [1, 1, 0]  # people are dropped
    merged = load(class_mapping={"car": "thing", "tennis racket": "thing"})
    assert class_names(merged) == ["thing"]
    assert len(ClipDataset(merged, 1, 0, AS_IT_IS)) == 2
    with pytest.raises(ValueError, match="data.json: class_mapping: 'cra' is not a category .* Did you mean 'car'?"):
        load(class_mapping={"cra": "vehicle"})
    with pytest.raises(ValueError, match="'ytvis' is not a class mapping"):  # a table without mapping is cached
        load(class_mapping="ytvis")
    with pytest.raises(ValueError, match="data.json has no annotation of a category that class_mapping keeps"):
        load(lambda content: content["annotations"].pop(), class_mapping={"car": "vehicle"})
    with pytest.raises(ValueError, match=r"not labels of the model: \['car'\].*give a class_mapping from"):
        load(labels=["person", "tennis racket"])


def test_class_mapping_of_videos(tiny_file, cache_dir):
    dataset = load_ytvis(
        tiny_file.write(), cache_dir=cache_dir, labels=["human", "ape"], class_mapping={"zebra": "human"}
    )
    assert [a["label"] for row in dataset for a in row["annotations"]] == [0]
    assert len(ClipDataset(dataset, 2, 2, evaluation_resize(20))) == 1


def test_an_image_is_a_video_of_one_frame(tiny_coco):
    content = read_annotations(tiny_coco.write(), "images")
    assert content == images_as_videos(tiny_coco.content)
    assert content["videos"][1] == {"id": 8, "width": 80, "height": 60, "length": 1, "file_names": ["8.png"]}
    assert content["annotations"][1] == {
        "id": 101,
        "video_id": 7,
        "category_id": 1,
        "iscrowd": 1,
        "segmentations": [tiny_coco.content["annotations"][1]["segmentation"]],
        "bboxes": [[40, 0, 40, 60]],
    }
    mapped = read_annotations(tiny_coco.write(), "images", {"car": "vehicle"})
    assert [category["name"] for category in mapped["categories"]] == ["vehicle"]


def test_files_that_cannot_be_used(tiny_coco, tiny_file, load, cache_dir):
    with pytest.raises(FileNotFoundError, match="image 8: .*8.png does not exist. Is .*JPEGImages the folder that the"):
        load(lambda content: (tiny_coco.images / "8.png").unlink())
    with pytest.raises(FileNotFoundError, match="image folder .*nowhere does not exist"):
        load_coco(tiny_coco.write(), tiny_coco.folder / "nowhere", cache_dir=cache_dir)
    with pytest.raises(
        ValueError, match="(?s)breaks the COCO format.*'images' is missing .*It has 'videos', so it is of"
    ):
        load_coco(tiny_file.write(), tiny_file.images, cache_dir=cache_dir)
    with pytest.raises(ValueError, match="(?s)breaks the YouTube-VIS.*It has 'images', so it is of COCO.*kind: images"):
        load_ytvis(tiny_coco.write(), cache_dir=cache_dir)
    with pytest.raises(ValueError, match="has no annotations"):
        load(lambda content: content.update(annotations=[]))


# Clips


def test_clip_without_augmentation_is_the_image(tiny_coco, load):
    dataset = ClipDataset(load(), 3, 0, AS_IT_IS)
    assert len(dataset) == 2  # image 9 is empty
    samples = {sample["video_id"]: sample for sample in (dataset[0], dataset[1])}
    assert {sample["name"] for sample in samples.values()} == {"image 7", "image 8"}
    sample = samples[7]
    pixels = np.asarray(Image.open(tiny_coco.images / "7.png"))
    for frame in sample["pixel_values_videos"]:
        np.testing.assert_array_equal(frame.permute(1, 2, 0), pixels)
    assert sample["frame_indices"] == [0, 0, 0]
    labels = sample["labels"]
    assert labels["class_labels"].tolist() == [0, 2]  # the crowd is dropped
    assert labels["ids"].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert labels["masks"].shape == (2, 3, 60, 80)
    for frame in range(3):
        assert labels["masks"][0, frame, 5:55, 10:40].all()
        assert labels["masks"][0, frame].sum() == 50 * 30
        assert labels["masks"][1, frame, 30:45, 50:70].all()
        assert labels["masks"][1, frame].sum() == 15 * 20


def test_ids_are_places_among_the_annotations(load):
    """Instances that the clip does not show are left out; the others count from the first shown."""

    def spoil(content):
        person, crowd, _, _ = content["annotations"]
        for number, left in enumerate((0, 40, 60)):
            square = [left, 0, left + 9, 0, left + 9, 9, left, 9]
            annotation = {**person, "id": 200 + number, "segmentation": [square], "bbox": [left, 0, 9, 9]}
            content["annotations"].append(annotation)
        content["annotations"] = [crowd, *content["annotations"][4:]]

    crop = RandomCropPath(probability=1.0, short_sides=(60,), window=(30, 30))
    dataset = ClipDataset(load(spoil), 2, 0, ClipAugmentation(short_sides=(30,), crop=crop, flip_probability=0))
    seen = set()
    for number in range(60):
        ids = dataset[number]["labels"]["ids"].max(1).values.tolist()
        assert not ids or ids[0] == 0
        seen.add(tuple(ids))
    assert {(), (0,), (0, 1)} <= seen


def test_frames_of_a_clip_differ_and_show_their_masks(load, tiny_coco):
    """Objects are white on black, so image and masks must agree after crop, flip and rotation."""
    pixels = np.zeros((60, 80, 3), dtype=np.uint8)
    pixels[5:55, 10:40] = 255
    Image.fromarray(pixels).save(tiny_coco.images / "7.png")
    dataset = ClipDataset(load(lambda content: content["annotations"].__delitem__(slice(1, None))), 4, 0, SMALL)
    moved = 0
    for number in range(30):
        sample = dataset[number]
        frames = sample["pixel_values_videos"]
        masks = sample["labels"]["masks"]
        shown = masks[0] if len(masks) else torch.zeros(4, *frames.shape[-2:], dtype=torch.bool)
        assert ((frames[:, 0] > 127) != shown).float().mean() < 0.04
        moved += int(not torch.equal(frames[0], frames[3]))
    assert moved == 30


def test_sample_is_a_function_of_seed_and_number(load):
    dataset = ClipDataset(load(), 3, 0, SMALL, seed=5)
    first = [sample_digest(dataset[number]) for number in range(12)]
    assert [sample_digest(dataset[number]) for number in reversed(range(12))] == first[::-1]
    in_workers = DataLoader(SampleDigests(pickle.loads(pickle.dumps(dataset)), 12), batch_size=None, num_workers=2)
    assert list(in_workers) == first
    assert sample_digest(ClipDataset(load(), 3, 0, SMALL, seed=6)[0]) != first[0]
    assert len(set(first)) == 12  # drawn again in every epoch


def test_images_and_videos_are_mixed_by_ratio(load, shapes_dir, cache_dir):
    videos = load_ytvis(shapes_dir / "train.json", cache_dir=cache_dir)
    names = class_names(videos)
    mapping = {"person": names[3], "car": names[1], "tennis racket": names[3]}
    images = load(labels=names, class_mapping=mapping)
    sources = [
        ClipDataset(images, 2, 0, SMALL),
        ClipDataset(videos, 2, 5, ClipAugmentation(short_sides=(48,), crop=None)),
    ]
    mixture = MixedClipDataset(sources, [1, 0.25], seed=1)
    samples = [mixture[number] for number in range(60)]
    share = sum(sample["name"].startswith("image") for sample in samples) / 60
    assert 0.65 < share < 0.95
    assert all(samples[0].keys() == sample.keys() for sample in samples)
    batch = collate_clips(samples, CvisVideoProcessor())
    assert batch["pixel_values_videos"].shape[:3] == (60, 2, 3)
    classes = {
        label
        for sample in samples
        if sample["name"].startswith("image")
        for label in sample["labels"]["class_labels"].tolist()
    }
    assert classes == {1, 3}


def test_pre_training_on_images(load):
    dataset = ClipDataset(load(), 1, 0, LargeScaleJitter(size=96))
    shapes = {tuple(dataset[number]["pixel_values_videos"].shape) for number in range(8)}
    assert shapes == {(1, 3, 96, 96)}


def test_images_without_a_kept_annotation_are_filtered(load):
    def spoil(content):
        content["annotations"][3]["segmentation"] = [[1, 2, 3, 4]]  # not a polygon

    dataset = ClipDataset(load(spoil), 1, 0, AS_IT_IS)
    assert {dataset[number]["video_id"] for number in range(4)} == {7}
    with pytest.raises(ValueError, match="No video or image of the data set has an annotation to train on"):
        ClipDataset(load(lambda content: [a.update(iscrowd=1) for a in content["annotations"]]), 1, 0, AS_IT_IS)


def test_many_rows_are_looked_through_in_blocks(load, tiny_coco):
    def many(content):
        image, annotations = content["images"][0], content["annotations"][:3]
        content["images"] = [{**image, "id": number} for number in range(2500)]
        content["annotations"] = [
            {**annotation, "id": 3 * number + part, "image_id": number}
            for number in range(2500)
            for part, annotation in enumerate(annotations)
            if number % 3 or part == 1  # every third image shows only the crowd
        ]

    dataset = ClipDataset(load(many), 1, 0, AS_IT_IS)
    assert dataset.rows.tolist() == [number for number in range(2500) if number % 3]


def test_exif_orientation_of_images_is_applied(tiny_coco, load):
    """The json describes the picture as viewers show it; the file may be rotated, with its orientation in EXIF."""
    pixels = np.zeros((60, 80, 3), dtype=np.uint8)
    pixels[:30] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers turn it by 90 degrees clockwise
    Image.fromarray(pixels).rotate(90, expand=True).save(tiny_coco.images / "7.png", exif=exif)
    frame = VideoDataset(load(), AS_IT_IS)[0]["pixel_values_videos"][0]
    np.testing.assert_array_equal(frame.permute(1, 2, 0), pixels)


def test_images_that_cannot_be_read_are_named(tiny_coco, load):
    dataset = VideoDataset(load(), AS_IT_IS)
    path = tiny_coco.images / "8.png"
    Image.new("RGB", (40, 30)).save(path)
    with pytest.raises(ValueError, match="^image 8: .*8.png is 30x40 .* but the json gives 60x80; make them agree"):
        dataset[1]
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="^image 8: .*8.png cannot be read .*; replace it"):
        dataset[1]
    path.unlink()
    with pytest.raises(FileNotFoundError, match="^image 8: .*8.png does not exist"):
        dataset[1]

    def spoil(content):
        content["annotations"][2]["segmentation"]["counts"] = "PP"

    path.touch()
    dataset = VideoDataset(load(spoil), AS_IT_IS)
    with pytest.raises(ValueError, match="^image 7: a mask cannot be decoded .*validate"):
        dataset[0]


def test_polygon_masks_are_those_of_pycocotools(load, tiny_coco):
    polygon = [[12.3, 7.9, 39.1, 9.2, 55.5, 30.1, 41.7, 52.8, 20.2, 47.4]]

    def spoil(content):
        content["annotations"][0].update(segmentation=polygon, bbox=[12.3, 7.9, 43.2, 44.9])

    masks = VideoDataset(load(spoil), AS_IT_IS)[0]["labels"]["masks"]
    expected = mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(polygon, 60, 80)))
    np.testing.assert_array_equal(masks[0, 0], expected.astype(bool))
