# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from transformers_cvis.modeling.losses import VideoTargets


def make_label(ids, num_labels=4, size=(8, 8)):
    ids = torch.tensor(ids)
    masks = torch.zeros(*ids.shape, *size, dtype=torch.bool)
    masks[..., 2:5, 2:5] = True
    masks &= (ids != -1)[:, :, None, None]
    return {"class_labels": torch.arange(len(ids)) % num_labels, "ids": ids, "masks": masks}


def test_objects_never_visible_are_dropped_and_ids_start_at_zero():
    labels = [make_label([[7, -1], [-1, -1], [9, 9]]), make_label([[3, 3]])]
    targets = VideoTargets.from_labels(labels, 4)
    assert targets.class_labels.tolist() == [0, 2, 0]
    assert targets.ids.tolist() == [[0, -1], [2, 2], [0, 0]]
    assert targets.video_index.tolist() == [0, 0, 1]


def test_frame_labels_and_matches_follow_the_visible_objects():
    labels = [make_label([[0, -1], [1, 1]]), make_label([[0, -1]])]
    targets = VideoTargets.from_labels(labels, 4)
    frames = targets.frame_labels()
    assert [frame["class_labels"].tolist() for frame in frames] == [[0, 1], [1], [0], []]
    assert [tuple(frame["masks"].shape) for frame in frames] == [(2, 8, 8), (1, 8, 8), (1, 8, 8), (0, 8, 8)]
    matches = targets.frame_matches(torch.tensor([[4, 5, 6, 7]]))
    assert matches.tolist() == [[[4, -1], [5, 6], [7, -1]]]


def test_clips_split_the_labels():
    targets = VideoTargets.from_labels([make_label([[0, -1, -1, -1], [1, 1, -1, 1]])], 4)
    ids = targets.clip_ids(2)
    assert ids.tolist() == [[[0, -1], [-1, -1]], [[1, 1], [-1, 1]]]
    objects, clips = targets.pairs((ids != -1).any(dim=2))
    assert list(zip(objects.tolist(), clips.tolist(), strict=True)) == [(0, 0), (1, 0), (1, 1)]
    chosen = targets.select(objects, clips, 2, torch.device("cpu"))
    assert chosen.counts == [2, 1]
    assert chosen.masks.sum(dim=(2, 3)).tolist() == [[9, 0], [9, 9], [0, 9]]


def test_no_objects_at_all():
    targets = VideoTargets.from_labels([make_label([[-1, -1]]), make_label([[-1, -1]])], 4)
    assert len(targets.class_labels) == 0
    assert [len(frame["class_labels"]) for frame in targets.frame_labels()] == [0, 0, 0, 0]


def test_labels_that_do_not_fit():
    label = make_label([[0, 1]])
    with pytest.raises(ValueError, match=r"video 0: `ids` must be \(objects, frames\) = \(1, 2\)"):
        VideoTargets.from_labels([{**label, "ids": label["ids"][:, :1]}], 4)
    with pytest.raises(ValueError, match=r"`masks` \(objects, frames, height, width\), got \(1,\) and \(1, 8, 8\)"):
        VideoTargets.from_labels([{**label, "masks": label["masks"][:, 0]}], 4)
    with pytest.raises(ValueError, match=r"Class labels must be in 0..3 \(num_labels=4\), got \[4\]"):
        VideoTargets.from_labels([{**label, "class_labels": torch.tensor([4])}], 4)
    with pytest.raises(ValueError, match=r"one length; their labels have \[2, 3\] frames"):
        VideoTargets.from_labels([label, make_label([[0, 1, 2]])], 4)
    targets = VideoTargets.from_labels([make_label([[0, 0, 0]])], 4)
    with pytest.raises(ValueError, match="3 frames cannot be split into 2 clips of equal length"):
        targets.clip_ids(2)
