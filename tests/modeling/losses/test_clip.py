# SPDX-License-Identifier: Apache-2.0
"""Losses of clip queries against explicit sums over objects and frames."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from tests.support.fixed_points import FixedPoints
from tests.support.ranks import mean_over_two_ranks
from transformers_cvis.modeling.losses import (
    ClipMaskClassificationLoss,
    VideoTargets,
    sample_points,
)
from transformers_cvis.modeling.outputs import LayerPrediction

NUM_LABELS, FRAMES, QUERIES, SIZE = 4, 3, 5, 16


def make_clips(counts=(2, 3), num_layers=2):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    clips = len(counts)
    layers = [
        LayerPrediction(random(clips, QUERIES, NUM_LABELS + 1), random(clips, QUERIES, 6)) for _ in range(num_layers)
    ]
    labels = []
    for count in counts:
        masks = torch.rand(count, FRAMES, SIZE, SIZE, generator=generator) > 0.6
        ids = torch.arange(count)[:, None].repeat(1, FRAMES)
        if count:
            masks[0, -1], ids[0, -1] = False, -1  # the first object is absent in the last frame
        classes = torch.randint(0, NUM_LABELS, (count,), generator=generator)
        labels.append({"class_labels": classes, "ids": ids, "masks": masks})
    return layers, random(clips, FRAMES, 6, SIZE // 4, SIZE // 4), labels


def make_loss(**settings):
    criterion = ClipMaskClassificationLoss(NUM_LABELS, num_points=40, **settings)
    criterion.point_sampler = FixedPoints()
    return criterion


def written_out(layer, features, labels, points, last_frame=False):
    """Compute weighted cross entropy, BCE and Dice of one layer, object by object and frame by frame."""

    def at_points(maps):
        return sample_points(maps[:, None].double(), points.expand(len(maps), -1, -1))[:, 0]

    ce, weights, bce, dice = 0.0, 0.0, 0.0, 0.0
    for clip, label in enumerate(labels):
        masks = torch.einsum("qc,tchw->qthw", layer.mask_embeddings[clip], features[clip])
        sampled = torch.stack([at_points(mask) for mask in masks])  # (Q, T, P)
        inside = [at_points(mask) for mask in label["masks"]]  # n of (T, P)
        classes = label["class_labels"].clone()
        if last_frame:
            classes[label["ids"][:, -1] == -1] = NUM_LABELS
        cost = torch.zeros(len(masks), len(classes))
        for query in range(len(masks)):
            for index in range(len(classes)):
                x, y = sampled[query].flatten(), inside[index].flatten()
                overlap = 1 - (2 * (x.sigmoid() * y).sum() + 1) / (x.sigmoid().sum() + y.sum() + 1)
                cost[query, index] = (
                    -2 * layer.class_logits[clip, query].softmax(-1)[classes[index]]
                    + 5 * nn.functional.binary_cross_entropy_with_logits(x, y)
                    + 5 * overlap
                )
        found = dict(zip(*linear_sum_assignment(cost.detach().numpy()), strict=True))
        for query in range(len(masks)):
            target = classes[found[query]] if query in found else torch.tensor(NUM_LABELS)
            weight = 0.1 if target == NUM_LABELS else 1.0
            ce = ce + weight * nn.functional.cross_entropy(layer.class_logits[clip, query], target)
            weights += weight
        for query, index in found.items():
            for x, y in zip(sampled[query], inside[index], strict=True):
                bce = bce + nn.functional.binary_cross_entropy_with_logits(x, y)
                dice = dice + 1 - (2 * (x.sigmoid() * y).sum() + 1) / (x.sigmoid().sum() + y.sum() + 1)
    num_objects = max(1, sum(len(label["class_labels"]) for label in labels))
    return {"ce": 2 * ce / weights, "mask": 5 * bce / num_objects, "dice": 5 * dice / num_objects}


@pytest.mark.parametrize("last_frame", [False, True])
@pytest.mark.parametrize("counts", [(2, 3), (0, 2), (4, 7)], ids=["objects", "an empty clip", "more than queries"])
def test_losses_are_those_of_every_object_in_every_frame(last_frame, counts):
    layers, features, labels = make_clips(counts)
    criterion = make_loss()
    targets = VideoTargets.from_labels(labels, NUM_LABELS)
    if last_frame:
        targets = targets.with_classes_of_last_frame(no_object=NUM_LABELS)
    losses = criterion(layers, features, targets)
    assert set(losses) == {f"loss_{kind}{suffix}" for kind in ("ce", "mask", "dice") for suffix in ("", "_0")}
    for layer, suffix in zip(layers, ("_0", ""), strict=True):
        expected = written_out(layer, features, labels, criterion.point_sampler.points, last_frame)
        for kind, value in expected.items():
            torch.testing.assert_close(losses[f"loss_{kind}{suffix}"], value, msg=f"{kind}{suffix}")
    gradients = torch.autograd.grad(sum(losses.values()), [features, *layers[0]])
    total = sum(
        sum(written_out(layer, features, labels, criterion.point_sampler.points, last_frame).values())
        for layer in layers
    )
    for ours, theirs in zip(gradients, torch.autograd.grad(total, [features, *layers[0]]), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_no_objects_reach_every_input():
    layers, features, labels = make_clips((0, 0))
    losses = make_loss()(layers, features, VideoTargets.from_labels(labels, NUM_LABELS))
    assert losses["loss_mask"] == 0
    assert losses["loss_dice_0"] == 0
    sum(losses.values()).backward()
    assert features.grad is not None
    assert all(layer.mask_embeddings.grad is not None for layer in layers)


def test_normalisers_are_averaged_over_ranks(monkeypatch):
    """The mean loss of two ranks with one clip each equals the loss of both clips in one process."""
    layers, features, labels = make_clips((1, 3))
    expected = make_loss()(layers, features, VideoTargets.from_labels(labels, NUM_LABELS))

    def one_rank(clip):
        mine = [LayerPrediction(*(part[clip : clip + 1] for part in layer)) for layer in layers]
        targets = VideoTargets.from_labels(labels[clip : clip + 1], NUM_LABELS)
        return make_loss()(mine, features[clip : clip + 1], targets)

    found = mean_over_two_ranks(monkeypatch, one_rank)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
