# SPDX-License-Identifier: Apache-2.0
import pickle
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tests.support.sample_digests import SampleDigests, sample_digest
from transformers_cvis.data import (
    ClipAugmentation,
    ClipDataset,
    MixedClipDataset,
    RandomCropPath,
    VideoDataset,
    collate_clips,
    evaluation_resize,
    generate_video,
    load_ytvis,
    make_moving_shapes,
    sample_clip_frames,
)
from transformers_cvis.processing import CvisVideoProcessor

SMALL = ClipAugmentation(short_sides=(40, 48, 56), crop=RandomCropPath(short_sides=(48, 60), window=(36, 60)))
AS_IT_IS = evaluation_resize(20)  # the tiny videos are 20x30


@pytest.fixture
def shapes(shapes_dir, tmp_path):
    return load_ytvis(shapes_dir / "train.json", cache_dir=tmp_path)


@pytest.fixture
def tiny(tiny_file, cache_dir):
    def load(spoil=None):
        return load_ytvis(tiny_file.write(spoil), tiny_file.images, cache_dir=cache_dir)

    return load


# Frame sampling


def test_window_of_sampled_frames():
    for seed in range(300):
        rng = np.random.default_rng(seed)
        frames = sample_clip_frames(30, 5, 6, rng)
        assert frames.shape == (5,)
        assert (np.diff(frames) >= 0).all()
        assert frames[0] >= 0
        assert frames[-1] < 30
        # some frame is the reference: all others within 6 of it, and it appears once
        references = [f for f in frames if np.abs(frames - f).max() <= 6 and (frames == f).sum() == 1]
        assert references


def test_sampling_reaches_all_of_the_window_and_repeats_frames():
    clips = [sample_clip_frames(10, 3, 2, np.random.default_rng(seed)) for seed in range(500)]
    assert {int(frame) for clip in clips for frame in clip} == set(range(10))
    assert max(int(clip[-1] - clip[0]) for clip in clips) == 4  # both sides of the reference
    assert any(len(set(clip.tolist())) == 2 for clip in clips)  # with replacement


def test_short_videos_repeat_the_reference():
    rng = np.random.default_rng(0)
    assert sample_clip_frames(1, 4, 20, rng).tolist() == [0, 0, 0, 0]
    assert set(sample_clip_frames(2, 6, 20, rng).tolist()) == {0, 1}
    assert len(set(sample_clip_frames(9, 3, 0, rng).tolist())) == 1
    assert len(sample_clip_frames(9, 1, 5, rng)) == 1


def test_consecutive_frames_come_from_everywhere():
    clips = [sample_clip_frames(8, 3, None, np.random.default_rng(seed)).tolist() for seed in range(200)]
    assert {tuple(clip) for clip in clips} == {(start, start + 1, start + 2) for start in range(6)}
    assert sample_clip_frames(3, 3, None, np.random.default_rng(0)).tolist() == [0, 1, 2]


def test_consecutive_frames_of_a_short_video_are_all_of_it_in_order():
    clips = [sample_clip_frames(3, 5, None, np.random.default_rng(seed)) for seed in range(50)]
    assert all(len(clip) == 5 and (np.diff(clip) >= 0).all() and set(clip) == {0, 1, 2} for clip in clips)
    assert len({tuple(clip) for clip in clips}) > 3  # which of them repeat is random
    assert sample_clip_frames(1, 2, None, np.random.default_rng(0)).tolist() == [0, 0]


def test_clips_that_run_backwards(shapes):
    """Half of the time the clip runs in another order; frames, masks and ids stay together."""
    there = ClipDataset(shapes, 4, None, evaluation_resize(48), seed=1)
    back = ClipDataset(shapes, 4, None, evaluation_resize(48), seed=1, reverse_probability=1.0)
    for number in range(6):
        one, other = there[number], back[number]
        assert other["frame_indices"] == one["frame_indices"][::-1]
        assert torch.equal(other["pixel_values_videos"], one["pixel_values_videos"].flip(0))
        for name in ("ids", "masks"):
            assert torch.equal(other["labels"][name], one["labels"][name].flip(1))
    half = ClipDataset(shapes, 4, None, evaluation_resize(48), seed=1, reverse_probability=0.5)
    backwards = [half[number]["frame_indices"][0] > half[number]["frame_indices"][-1] for number in range(40)]
    assert 10 < sum(backwards) < 30


# Samples


def test_sample_without_augmentation_is_the_annotation(shapes_dir, shapes):
    """Masks of a sample equal the generator's, frame by frame, and pixels equal those of the files."""
    dataset = ClipDataset(shapes, 4, 5, evaluation_resize(48), seed=1)
    for number in range(12):
        sample = dataset[number]
        frames, index = sample["frame_indices"], sample["video_id"] - 1
        video = generate_video(shapes[index]["length"], (48, 64), (3, 0, index, 1))
        masks = video.masks[:, frames]
        seen = masks.any((1, 2, 3))
        np.testing.assert_array_equal(sample["labels"]["masks"], masks[seen])
        np.testing.assert_array_equal(sample["labels"]["ids"] >= 0, masks[seen].any((2, 3)))
        classes = shapes.features["annotations"].feature["label"].str2int(video.categories)
        assert sample["labels"]["class_labels"].tolist() == list(np.array(classes)[seen])
        file = np.asarray(Image.open(shapes[index]["file_names"][frames[2]]))
        np.testing.assert_array_equal(sample["pixel_values_videos"][2].permute(1, 2, 0), file)


def test_types_and_shapes(shapes):
    sample = ClipDataset(shapes, 3, 6, SMALL)[5]
    labels = sample["labels"]
    num_frames, channels, height, width = sample["pixel_values_videos"].shape
    num_instances = len(labels["class_labels"])
    assert (num_frames, channels) == (3, 3)
    assert sample["pixel_values_videos"].dtype == torch.uint8
    assert sample["pixel_values_videos"].is_contiguous()
    assert labels["masks"].shape == (num_instances, 3, height, width)
    assert labels["masks"].dtype == torch.bool
    assert labels["ids"].shape == (num_instances, 3)
    assert labels["ids"].dtype == labels["class_labels"].dtype == torch.int64
    assert set(sample) == {"pixel_values_videos", "labels", "video_id", "frame_indices", "name"}


def test_ids(tiny):
    samples = [ClipDataset(tiny(), 3, 3, AS_IT_IS, seed=seed)[0] for seed in range(40)]
    for sample in samples:
        labels, frames = sample["labels"], sample["frame_indices"]
        np.testing.assert_array_equal(labels["ids"] >= 0, labels["masks"].any(-1).any(-1))
        assert labels["ids"].max(1).values.min() == 0  # the smallest id of the clip is 0
        assert (labels["ids"].max(1).values >= 0).all()  # every instance is seen in some frame
        for ids in labels["ids"]:
            assert len(set(ids.tolist()) - {-1}) == 1
        if sample["video_id"] == 1 and len(labels["ids"]) == 2:
            # annotation 10 (class 1) is hidden at frame 2, annotation 11 (class 0) at frame 0
            assert labels["class_labels"].tolist() == [1, 0]
            assert labels["ids"][0].tolist() == [-1 if frame == 2 else 0 for frame in frames]
            assert labels["ids"][1].tolist() == [-1 if frame == 0 else 1 for frame in frames]
    assert {sample["video_id"] for sample in samples} == {1, 2}


def test_instance_outside_the_crop_is_absent(tiny_file, tiny):
    """The crop path moves over the 20x30 frame; wherever the window misses the object, its id is -1."""
    crop = RandomCropPath(probability=1.0, short_sides=(20,), window=(8, 8))
    dataset = ClipDataset(tiny(), 3, 3, ClipAugmentation(short_sides=(8,), crop=crop), seed=0)
    lost = 0
    for number in range(60):
        labels = dataset[number]["labels"]
        visible = labels["masks"].any(-1).any(-1)
        assert ((labels["ids"] >= 0) == visible).all()
        assert visible.any(1).all()
        lost += int((~visible).any())
    assert lost > 5
    assert any(len(dataset[number]["labels"]["class_labels"]) == 0 for number in range(60))  # an empty window


def test_degenerate_box_counts_as_absent(tiny):
    def spoil(content):
        content["annotations"][2]["bboxes"] = [[5.0, 5.0, 0.0, 5.0]] * 3

    dataset = ClipDataset(tiny(spoil), 2, 2, AS_IT_IS)
    samples = [dataset[number] for number in range(2)]
    (sample,) = [sample for sample in samples if sample["video_id"] == 2]
    assert sample["labels"]["ids"].shape == (0, 2)
    assert sample["labels"]["masks"].shape == (0, 2, 20, 30)


def test_crowds_and_empty_videos_are_dropped(tiny):
    dataset = ClipDataset(tiny(lambda content: content["annotations"].pop()), 2, 2, AS_IT_IS)
    assert len(dataset) == 1
    assert {dataset[number]["video_id"] for number in range(5)} == {1}

    def crowd(content):
        content["annotations"][2]["iscrowd"] = content["annotations"][0]["iscrowd"] = 1

    dataset = ClipDataset(tiny(crowd), 4, 4, AS_IT_IS)
    assert len(dataset) == 1
    assert {label for number in range(5) for label in dataset[number]["labels"]["class_labels"].tolist()} == {0}
    with pytest.raises(ValueError, match="No video or image of the data set has an annotation to train on"):
        ClipDataset(tiny(lambda content: [a.update(iscrowd=1) for a in content["annotations"]]), 2, 2, AS_IT_IS)


def test_repeated_frames_are_decoded_once(shapes, monkeypatch):
    opened = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or original(path))
    sample = ClipDataset(shapes, 8, 1, SMALL)[0]
    assert len(opened) == len(set(sample["frame_indices"])) <= 3


# Determinism


def test_sample_is_a_function_of_seed_and_number(shapes):
    dataset = ClipDataset(shapes, 3, 6, SMALL, seed=5)
    first = [sample_digest(dataset[number]) for number in range(15)]
    other_order = ClipDataset(shapes, 3, 6, SMALL, seed=5)
    assert [sample_digest(other_order[number]) for number in reversed(range(15))] == first[::-1]
    in_workers = DataLoader(SampleDigests(pickle.loads(pickle.dumps(dataset)), 15), batch_size=None, num_workers=2)
    assert list(in_workers) == first
    assert sample_digest(ClipDataset(shapes, 3, 6, SMALL, seed=6)[0]) != first[0]
    np.random.seed(0)
    torch.manual_seed(0)
    assert sample_digest(dataset[0]) == first[0]  # global generators have no effect


def test_every_epoch_visits_every_video_once_in_another_order(shapes):
    dataset = ClipDataset(shapes, 1, 0, evaluation_resize(48), seed=2)
    assert len(dataset) == 6
    orders = [tuple(dataset[epoch * 6 + position]["video_id"] for position in range(6)) for epoch in range(4)]
    assert all(sorted(order) == [1, 2, 3, 4, 5, 6] for order in orders)
    assert len(set(orders)) > 1
    with pytest.raises(IndexError, match="Sample numbers start at 0"):
        dataset[-1]


def test_mixture_follows_the_ratios_and_takes_every_source_in_turn(shapes, monkeypatch):
    sources = [ClipDataset(shapes, 1, 0, SMALL, seed=seed) for seed in (1, 2)]
    taken = [[], []]
    for source, numbers in zip(sources, taken, strict=True):
        monkeypatch.setattr(source, "_row_of_sample", lambda number, numbers=numbers: numbers.append(number) or 0)
    monkeypatch.setattr(MixedClipDataset, "BLOCK", 50)
    mixture = MixedClipDataset(sources, [1, 0.25], seed=3)
    for number in range(220):
        mixture[number]
    assert taken[0] == list(range(len(taken[0])))
    assert taken[1] == list(range(len(taken[1])))
    assert 0.1 < len(taken[1]) / 220 < 0.3
    before = [list(numbers) for numbers in taken]
    resumed = MixedClipDataset(sources, [1, 0.25], seed=3)
    for number in range(150, 220):  # the same samples without the earlier ones
        resumed[number]
    for numbers, earlier in zip(taken, before, strict=True):
        again = numbers[len(earlier) :]
        assert again
        assert again == earlier[-len(again) :]
    assert len(mixture) == 12
    with pytest.raises(ValueError, match="give one positive ratio for each source"):
        MixedClipDataset(sources, [1])


# Whole videos


def test_video_dataset_gives_whole_videos_in_order(shapes):
    dataset = VideoDataset(shapes, evaluation_resize(24))
    samples = [dataset[index] for index in range(len(dataset))]
    assert [sample["video_id"] for sample in samples] == [1, 2, 3, 4, 5, 6]
    for sample, row in zip(samples, shapes, strict=True):
        assert sample["frame_indices"] == list(range(row["length"]))
        assert sample["pixel_values_videos"].shape == (row["length"], 3, 24, 32)
    with pytest.raises(IndexError, match="Index 6 is out of range: the data set has 6 videos"):
        dataset[6]


# Bad input


def test_frames_that_cannot_be_used_are_named(tiny_file, tiny):
    dataset = ClipDataset(tiny(), 8, 8, AS_IT_IS)
    broken = tiny_file.images / "v1" / "00001.jpg"
    number = next(number for number in range(2) if dataset[number]["video_id"] == 1)
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ValueError, match="video 1: frame .*00001.jpg cannot be read .*; replace it"):
        dataset[number]
    Image.new("RGB", (15, 10)).save(broken)
    with pytest.raises(ValueError, match=r"video 1: frame .*00001.jpg is 10x15 .* but the json gives 20x30; make"):
        dataset[number]
    broken.unlink()
    with pytest.raises(FileNotFoundError, match="video 1: frame .*00001.jpg does not exist"):
        dataset[number]


def test_grey_frames_become_rgb(tiny_file, tiny):
    Image.new("L", (30, 20), 99).save(tiny_file.images / "v2" / "00001.jpg")
    sample = VideoDataset(tiny(), AS_IT_IS)[1]
    assert sample["pixel_values_videos"].shape == (3, 3, 20, 30)
    assert sample["pixel_values_videos"][1].float().mean() == pytest.approx(99, abs=1)


def test_mask_that_cannot_be_decoded_is_named(tiny):
    def spoil(content):
        content["annotations"][2]["segmentations"][0]["counts"] = "PP"

    with pytest.raises(ValueError, match="video 2: a mask of frame 0 cannot be decoded .*validate"):
        VideoDataset(tiny(spoil), AS_IT_IS)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 0}, "`num_frames` must be at least 1, got 0"),
        ({"frame_range": -1}, "`frame_range` must be at least 0 frames, got -1"),
        ({"seed": -3}, "`seed` must be at least 0, got -3"),
        ({"reverse_probability": 2}, "reverse_probability is 2; give a share in 0..1"),
    ],
)
def test_bad_arguments(tiny, arguments, message):
    with pytest.raises(ValueError, match=message):
        ClipDataset(tiny(), **{"num_frames": 2, "frame_range": 2, "augmentation": AS_IT_IS, **arguments})


# Batches


def sample_of_size(height, width, num_frames=2, value=255):
    masks = torch.ones(1, num_frames, height, width, dtype=torch.bool)
    labels = {"class_labels": torch.tensor([3]), "ids": torch.zeros(1, num_frames, dtype=torch.int64), "masks": masks}
    pixel_values = torch.full((num_frames, 3, height, width), value, dtype=torch.uint8)
    return {"pixel_values_videos": pixel_values, "labels": labels}


def test_collate_normalises_then_pads():
    mean, std = [0.5, 0.4, 0.3], [0.1, 0.2, 0.3]
    processor = CvisVideoProcessor(image_mean=mean, image_std=std)
    batch = collate_clips([sample_of_size(40, 70), sample_of_size(64, 33, value=0)], processor)
    assert batch["pixel_values_videos"].shape == (2, 2, 3, 64, 96)
    assert batch["pixel_values_videos"].dtype == torch.float32
    first = batch["pixel_values_videos"][0, 1]
    torch.testing.assert_close(first[:, 39, 69], torch.tensor([5.0, 3.0, 0.7 / 0.3]))
    assert (first[:, 40:] == 0).all()
    assert (first[:, :, 70:] == 0).all()
    torch.testing.assert_close(batch["pixel_values_videos"][1, 0, :, 0, 0], torch.tensor([-5.0, -2.0, -1.0]))
    assert [labels["masks"].shape for labels in batch["labels"]] == [(1, 2, 64, 96)] * 2
    assert [labels["masks"].sum().item() for labels in batch["labels"]] == [2 * 40 * 70, 2 * 64 * 33]
    narrow = collate_clips([sample_of_size(33, 64)], CvisVideoProcessor(size_divisor=8))
    assert narrow["pixel_values_videos"].shape[-2:] == (40, 64)


def test_collate_refuses_mismatched_samples():
    with pytest.raises(ValueError, match=r"have \[2, 3\] frames; they must have the same number"):
        collate_clips([sample_of_size(8, 8, 2), sample_of_size(8, 8, 3)], CvisVideoProcessor())
    with pytest.raises(ValueError, match=r"give it for pixels in 0..1, divided by 255"):
        collate_clips([sample_of_size(8, 8)], CvisVideoProcessor(image_mean=[123.675, 116.28, 103.53]))


def test_loading_is_fast(tmp_path_factory):
    folder = make_moving_shapes(tmp_path_factory.mktemp("speed") / "data", 4, 0, 12, (96, 160))
    dataset = ClipDataset(load_ytvis(folder / "train.json", cache_dir=folder), 4, 6, ClipAugmentation((80, 96, 112)))
    dataset[0]
    start = time.process_time()
    for number in range(10):
        dataset[number]
    assert (time.process_time() - start) / 40 < 0.02  # seconds per frame; about 0.002 on an idle machine


def test_real_footage(clips_folder, tmp_path):
    for name in ("mini_vis", "mini_vis_permissive"):
        table = load_ytvis(clips_folder / name / "train.json", cache_dir=tmp_path)
        dataset = ClipDataset(table, 5, 6, ClipAugmentation(), seed=0)
        for number in range(len(dataset)):
            sample = dataset[number]
            height, width = sample["pixel_values_videos"].shape[-2:]
            assert max(height, width) <= 768
            assert sample["labels"]["masks"].shape[1:] == (5, height, width)
