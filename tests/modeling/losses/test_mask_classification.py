# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.fixed_points import FixedPoints
from tests.support.ranks import mean_over_two_ranks
from transformers_cvis.modeling.losses import MaskClassificationLoss, matching, sample_points
from transformers_cvis.modeling.outputs import LayerPrediction

NUM_LABELS = 5


def make_images(counts=(2, 0, 3), num_layers=3, num_queries=7, channels=6, dtype=torch.float64, seed=0):
    """Return predictions of every layer, mask features and labels of `len(counts)` images of 32 x 48 pixels."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    predictions = [
        LayerPrediction(draw(len(counts), num_queries, NUM_LABELS + 1), draw(len(counts), num_queries, channels))
        for _ in range(num_layers)
    ]
    labels = [
        {
            "class_labels": torch.randint(NUM_LABELS, (count,), generator=generator),
            "masks": torch.rand(count, 4, 6, generator=generator)
            .gt(0.5)
            .repeat_interleave(8, 1)
            .repeat_interleave(8, 2),
        }
        for count in counts
    ]
    return predictions, draw(len(counts), channels, 8, 12), labels


def make_loss(**kwargs):
    return MaskClassificationLoss(NUM_LABELS, **{"num_points": 64, **kwargs})


def dense_cost(logits, masks, probabilities, classes, points):
    """Compute the matching cost of one image by its definition: `(Q, h, w)` mask logits against `(n, H, W)` masks."""
    predicted = sample_points(logits[None], points[None])[0][:, None]  # (Q, 1, P)
    inside = sample_points(masks[None].to(logits), points[None])[0][None]  # (1, n, P)
    predicted, inside = torch.broadcast_tensors(predicted, inside)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(predicted, inside, reduction="none").mean(2)
    sigmoid = predicted.sigmoid()
    dice = 1 - (2 * (sigmoid * inside).sum(2) + 1) / (sigmoid.sum(2) + inside.sum(2) + 1)
    return -2 * probabilities[:, classes] + 5 * bce + 5 * dice


@pytest.mark.parametrize("group_elements", [1, 2**25])
def test_cost_is_that_of_dense_mask_logits(monkeypatch, group_elements):
    monkeypatch.setattr(matching, "_GROUP_ELEMENTS", group_elements)
    predictions, features, labels = make_images()
    criterion = make_loss()
    points = torch.rand(2, 64, 2, dtype=torch.float64)
    monkeypatch.setattr(criterion.point_sampler, "matching_points", lambda num_problems, like: points)
    costs = []
    compute = criterion._costs
    monkeypatch.setattr(criterion, "_costs", lambda *arguments: costs.extend(compute(*arguments)) or costs)
    matched = criterion.match(predictions, features, labels)
    assert matched.shape == (3, 5)
    for image, image_points in ((0, points[0]), (2, points[1])):
        for layer, (class_logits, embeddings) in enumerate(predictions):
            expected = dense_cost(
                torch.einsum("qc,chw->qhw", embeddings[image], features[image]),
                labels[image]["masks"],
                class_logits[image].softmax(-1),
                labels[image]["class_labels"],
                image_points,
            )
            torch.testing.assert_close(torch.from_numpy(costs[image][layer, 0]), expected.detach())
    assert costs[1].shape == (3, 1, 7, 0)


def test_losses_are_named_per_layer_and_finite_without_objects():
    predictions, features, labels = make_images()
    losses, matched = make_loss()(predictions, features, labels)
    kinds = ("loss_ce", "loss_mask", "loss_dice")
    assert set(losses) == {f"{kind}{suffix}" for kind in kinds for suffix in ("", "_0", "_1")}
    assert matched.shape == (3, 5)
    sum(losses.values()).backward()
    for tensor in [features, *(part for prediction in predictions for part in prediction)]:
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()


def test_no_targets_trains_no_object_only_and_reaches_every_input():
    predictions, features, labels = make_images(counts=(0, 0))
    losses, matched = make_loss()(predictions, features, labels)
    assert matched.shape == (3, 0)
    assert losses["loss_mask"] == 0
    assert losses["loss_dice_1"] == 0
    log_probability = predictions[-1].class_logits.log_softmax(-1)[..., -1]
    torch.testing.assert_close(losses["loss_ce"], -2 * log_probability.mean())
    sum(losses.values()).backward()
    assert features.grad is not None
    assert not features.grad.any()
    assert all(prediction.mask_embeddings.grad is not None for prediction in predictions)


def test_perfect_predictions_cost_little():
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, :16], masks[1, 16:] = True, True
    features = (masks[:, ::4, ::4].double() * 40 - 20)[None]
    class_logits = torch.full((1, 3, NUM_LABELS + 1), -20.0, dtype=torch.float64)
    class_logits[0, torch.arange(3), torch.tensor([NUM_LABELS, 1, 3])] = 20
    embeddings = torch.tensor([[[-1.0, -1.0], [0.0, 1.0], [1.0, 0.0]]], dtype=torch.float64)
    criterion = make_loss(importance_sample_ratio=0.0)
    labels = [{"class_labels": torch.tensor([3, 1]), "masks": masks}]
    losses, matched = criterion([LayerPrediction(class_logits, embeddings)], features, labels)
    assert matched.tolist() == [[2, 1]]
    assert losses["loss_ce"] < 1e-6
    assert losses["loss_dice"] < 0.5
    assert losses["loss_mask"] < 5


def test_more_objects_than_queries():
    predictions, features, labels = make_images(counts=(1, 8))
    with pytest.raises(ValueError, match="labels of image 1 hold 8 objects, but the model has only 7 queries"):
        make_loss()(predictions, features, labels)


def test_focal_loss_is_that_of_every_class_of_every_query():
    predictions, features, labels = make_images(num_layers=1)
    torch.manual_seed(0)
    losses, matched = make_loss(classification_loss="focal", no_object_weight=0.3)(predictions, features, labels)
    torch.manual_seed(0)
    others, _ = make_loss()(predictions, features, labels)
    class_logits, total = predictions[0].class_logits, 0.0
    targets = torch.full(class_logits.shape[:2], NUM_LABELS)
    images = torch.tensor([image for image, label in enumerate(labels) for _ in label["class_labels"]])
    targets[images, matched[0]] = torch.cat([label["class_labels"] for label in labels])
    for logits, target in zip(class_logits.flatten(0, 1), targets.flatten(), strict=True):
        for index, logit in enumerate(logits):
            right = torch.sigmoid(logit if index == target else -logit)
            total = total - 5 * (1 - right) * right.log()
    torch.testing.assert_close(losses["loss_ce"], 2 * 50 * total / class_logits.numel())
    assert not torch.isclose(losses["loss_ce"], others["loss_ce"])
    assert losses["loss_mask"] == others["loss_mask"]
    assert losses["loss_dice"] == others["loss_dice"]
    with pytest.raises(ValueError, match="`classification_loss` must be one of 'ce', 'focal', got 'sigmoid'"):
        make_loss(classification_loss="sigmoid")


def test_surplus_objects_are_left_out_but_counted():
    predictions, features, labels = make_images(counts=(1, 8), num_layers=1)
    criterion = make_loss()
    criterion.point_sampler, criterion.leave_surplus = FixedPoints(), True
    losses, matched = criterion(predictions, features, labels)
    assert sorted(matched[0, 1:].tolist()) == [-1, *range(7)]
    assert torch.equal(criterion.match(predictions, features, labels), matched)
    others = matched[0, 1:] != -1
    kept = [labels[0], {name: part[others] for name, part in labels[1].items()}]
    expected, _ = criterion(predictions, features, kept)
    torch.testing.assert_close(losses["loss_ce"], expected["loss_ce"])
    for name in ("loss_mask", "loss_dice"):
        torch.testing.assert_close(9 * losses[name], 8 * expected[name])


@pytest.mark.parametrize("broken", ["class_logits", "mask_embeddings", "mask_features"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_cost_that_is_not_finite_names_its_cause(broken, value):
    predictions, features, labels = make_images()
    named = {"mask_features": features, **predictions[1]._asdict()}
    with torch.no_grad():
        named[broken][0, 0] = value
    with pytest.raises(ValueError, match=f"cannot be matched to objects: {broken} hold NaN or infinity"):
        make_loss()(predictions, features, labels)


def test_labels_that_do_not_fit():
    predictions, features, labels = make_images()
    labels[0]["masks"] = labels[0]["masks"][:1]
    with pytest.raises(
        ValueError, match=r"Labels 0: .* `masks` \(objects, height, width\), got \(2,\) and \(1, 32, 48\)"
    ):
        make_loss()(predictions, features, labels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_scored_in_float32(dtype):
    predictions, features, labels = make_images(dtype=dtype)
    full = [LayerPrediction(*(part.detach().float() for part in prediction)) for prediction in predictions]
    torch.manual_seed(0)
    expected, _ = make_loss()(full, features.detach().float(), labels)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = make_loss()(predictions, features, labels)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name])
    sum(losses.values()).backward()
    assert features.grad.dtype == dtype
    assert features.grad.isfinite().all()


def test_normalisers_are_averaged_over_ranks(monkeypatch):
    """The mean loss of two ranks with one image each equals the loss of both images in one process."""
    predictions, features, labels = make_images(counts=(1, 3), num_layers=2)
    whole = make_loss()
    torch.manual_seed(0)
    points = torch.rand(64, 2, dtype=torch.float64)
    monkeypatch.setattr(
        type(whole.point_sampler),
        "matching_points",
        lambda self, num_problems, like: points.expand(num_problems, -1, -1),
    )
    monkeypatch.setattr(
        type(whole.point_sampler), "loss_points", lambda self, logits: points.expand(*logits.shape[:2], -1, -1)
    )
    expected, _ = whole(predictions, features, labels)

    def one_rank(image):
        mine = [LayerPrediction(*(part[image : image + 1] for part in prediction)) for prediction in predictions]
        return make_loss()(mine, features[image : image + 1], labels[image : image + 1])[0]

    found = mean_over_two_ranks(monkeypatch, one_rank)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_dense_logits_of_all_queries_are_never_built():
    counts, num_queries = (1, 1), 50
    predictions, features, labels = make_images(counts, num_queries=num_queries)
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            nonlocal largest
            result = function(*arguments, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return result

    with Largest():
        losses, _ = make_loss(num_points=8)(predictions, features, labels)
        sum(losses.values()).backward()
    assert largest < len(predictions) * len(counts) * num_queries * features[0, 0].numel() / 4
