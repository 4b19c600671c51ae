# SPDX-License-Identifier: Apache-2.0
"""Distillation losses against explicit sums."""

import math

import pytest
import torch
from torch import nn

from tests.support.ranks import mean_over_two_ranks
from transformers_cvis.modeling.losses import VideoTargets
from transformers_cvis.modeling.losses.clip import ClipMaskClassificationLoss
from transformers_cvis.modeling.losses.distillation import (
    IncrementalClipLoss,
    class_distillation_loss,
    mask_distillation_loss,
    old_log_probabilities,
    pooled_distillation_loss,
    pseudo_labels,
    unbiased_log_probabilities,
)
from transformers_cvis.modeling.outputs import LayerPrediction

OLD, NEW = 3, 2  # classes


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(row) -> list[float]:
    powers = [math.exp(value) for value in row.tolist()]
    return [power / sum(powers) for power in powers]


class TestUnbiased:
    def test_no_object_stands_for_old_classes(self):
        logits = random(4, OLD + NEW + 1)
        for row, found in zip(logits, unbiased_log_probabilities(logits, OLD).exp(), strict=True):
            probabilities = softmax(row)
            assert found[:-1].tolist() == pytest.approx(probabilities[:-1])
            assert found[-1].item() == pytest.approx(sum(probabilities[:OLD]) + probabilities[-1])

    def test_new_classes_count_as_no_object_to_the_old_model(self):
        logits = random(4, OLD + NEW + 1)
        unbiased, plain = old_log_probabilities(logits, OLD).exp(), old_log_probabilities(logits, OLD, False).exp()
        for row, merged, restricted in zip(logits, unbiased, plain, strict=True):
            probabilities = softmax(row)
            expected = [*probabilities[:OLD], sum(probabilities[OLD:])]
            assert merged.tolist() == pytest.approx(expected)
            assert restricted.tolist() == pytest.approx(softmax(torch.cat([row[:OLD], row[-1:]])))
        assert torch.allclose(unbiased.sum(-1), torch.ones(4).double())

    def test_large_logits(self):
        logits = 1e4 * random(4, OLD + NEW + 1).float()
        assert unbiased_log_probabilities(logits, OLD).isfinite().all()
        assert class_distillation_loss(logits[None], 1e4 * random(1, 4, OLD + 1, seed=1).float()).isfinite()


class TestClassDistillation:
    @pytest.mark.parametrize("reweight", [False, True])
    @pytest.mark.parametrize("kind", ["unbiased", "plain", "squared"])
    @pytest.mark.parametrize("alpha", [1.0, 2.0])
    def test_distances(self, kind, reweight, alpha):
        logits, old_logits = random(2, 5, OLD + NEW + 1).requires_grad_(), random(2, 5, OLD + 1, seed=1)
        total, weights = 0.0, 0.0
        for row, old_row in zip(logits.flatten(0, 1), old_logits.flatten(0, 1), strict=True):
            probabilities, old = softmax(row), softmax(alpha * old_row)
            if kind == "unbiased":
                new = [*probabilities[:OLD], sum(probabilities[OLD:])]
            else:
                kept = [*probabilities[:OLD], probabilities[-1]]
                new = [value / sum(kept) for value in kept]
            if kind == "squared":
                loss = sum((p - q) ** 2 for p, q in zip(new, old, strict=True))
            else:
                loss = sum(q * (math.log(q) - math.log(p)) for p, q in zip(new, old, strict=True))
            weight = (1 - old[-1]) ** 2 if reweight else 1.0
            total, weights = total + weight * loss, weights + weight
        found = class_distillation_loss(logits, old_logits, kind, reweight, alpha)
        assert found.item() == pytest.approx(total / weights)
        found.backward()
        assert logits.grad.isfinite().all()
        assert logits.grad.any()

    def test_equal_models_have_zero_distance(self):
        old_logits = random(2, 5, OLD + 1)
        never = torch.full((2, 5, NEW), -1e3, dtype=torch.float64)
        logits = torch.cat([old_logits[..., :OLD], never, old_logits[..., OLD:]], dim=-1)
        for kind in ("unbiased", "plain", "squared"):
            assert class_distillation_loss(logits, old_logits, kind).item() == pytest.approx(0, abs=1e-12)

    def test_queries_without_weight(self):
        sure_of_nothing = torch.tensor([0.0] * OLD + [1e3]).expand(1, 4, -1)
        loss = class_distillation_loss(random(1, 4, OLD + NEW + 1).float(), sure_of_nothing, reweight=True)
        assert loss == 0

    def test_weights_are_averaged_over_ranks(self, monkeypatch):
        logits, old_logits = random(2, 5, OLD + NEW + 1), random(2, 5, OLD + 1, seed=1)

        def one_rank(clip):
            part = slice(clip, clip + 1)
            return {"loss": class_distillation_loss(logits[part], old_logits[part], reweight=True)}

        expected = class_distillation_loss(logits, old_logits, reweight=True)
        torch.testing.assert_close(mean_over_two_ranks(monkeypatch, one_rank)["loss"], expected)

    def test_unknown_kind(self):
        with pytest.raises(ValueError, match="`kind` must be one of 'unbiased', 'plain', 'squared', got 'best'"):
            class_distillation_loss(random(1, 4, OLD + NEW + 1), random(1, 4, OLD + 1), "best")


def test_mask_distillation():
    logits, old_logits = random(1, 2, 1, 3, 4), random(1, 2, 1, 3, 4, seed=1)
    expected = []
    for logit, old_logit in zip(logits.flatten().tolist(), old_logits.flatten().tolist(), strict=True):
        p, q = 1 / (1 + math.exp(-logit)), 1 / (1 + math.exp(-old_logit))
        expected.append(-q * math.log(p) - (1 - q) * math.log(1 - p))
    assert mask_distillation_loss(logits, old_logits).item() == pytest.approx(sum(expected) / len(expected))


class TestPod:
    def test_distance_of_pooled_cells(self):
        """A map that divides evenly: rows and columns of every cell."""
        ours, theirs = random(2, 3, 4, 8), random(2, 3, 4, 8, seed=1)
        difference = ours - theirs
        expected = 0.0
        for image in difference:
            squares = 0.0
            for scale in (1, 2, 4):
                height, width = 4 // scale, 8 // scale
                for row in range(scale):
                    for column in range(scale):
                        for channel in image:
                            cell = channel[row * height : (row + 1) * height, column * width : (column + 1) * width]
                            squares += sum(line.mean().item() ** 2 for line in [*cell, *cell.T])
            expected += math.sqrt(squares) / 2
        assert pooled_distillation_loss([ours], [theirs]).item() == pytest.approx(expected)
        other = random(2, 5, 2, 2), random(2, 5, 2, 2, seed=1)
        both = pooled_distillation_loss([ours, other[0]], [theirs, other[1]])
        alone = pooled_distillation_loss([other[0]], [other[1]])
        assert both.item() == pytest.approx((expected + alone.item()) / 2)

    def test_cells_of_odd_maps_leave_nothing_out(self):
        ours, theirs = random(1, 2, 7, 5), random(1, 2, 7, 5, seed=1)
        before = pooled_distillation_loss([ours], [theirs])
        for place in ((6, 4), (0, 0), (3, 2)):
            changed = ours.clone()
            changed[..., place[0], place[1]] += 5
            assert pooled_distillation_loss([changed], [theirs]) != before

    def test_released_cells(self):
        """Cells of the width: the same for square maps, clipped and finite for wide ones."""
        square = random(1, 2, 8, 8), random(1, 2, 8, 8, seed=1)
        assert torch.equal(
            *(pooled_distillation_loss(*[[m] for m in square], c) for c in ("rows_and_columns", "released"))
        )
        wide = random(1, 2, 4, 8), random(1, 2, 4, 8, seed=1)
        values = [pooled_distillation_loss(*[[m] for m in wide], c) for c in ("rows_and_columns", "released")]
        assert values[0] != values[1]
        assert values[1].isfinite()
        with pytest.raises(ValueError, match="`cells` must be one of 'rows_and_columns', 'released', got 'best'"):
            pooled_distillation_loss([wide[0]], [wide[1]], "best")


class TestIncrementalClipLoss:
    def losses(self, **settings):
        labels = OLD + NEW
        prediction = LayerPrediction(random(2, 4, labels + 1), random(2, 4, 6, seed=1))
        masks = random(1, 2, 16, 16, seed=2) > 0
        label = {"class_labels": torch.tensor([OLD]), "ids": torch.zeros(1, 2, dtype=torch.long), "masks": masks}
        targets = VideoTargets.from_labels([label, label], labels)
        criterion = (
            IncrementalClipLoss(labels, OLD, num_points=20, **settings)
            if settings
            else ClipMaskClassificationLoss(labels, num_points=20)
        )
        place = []
        weigh = criterion._query_losses
        criterion._query_losses = lambda logits, classes: place.append(classes) or weigh(logits, classes)
        torch.manual_seed(0)
        losses = criterion([prediction], random(2, 2, 6, 4, 4, seed=3), targets)
        return losses, prediction.class_logits.flatten(0, 1), place[0].flatten()

    def test_unbiased_cross_entropy(self):
        losses, logits, classes = self.losses(unbiased=True)
        total, weights = 0.0, 0.0
        for row, target in zip(logits, classes.tolist(), strict=True):
            probabilities = softmax(row)
            nothing = target == OLD + NEW
            probability = sum(probabilities[:OLD]) + probabilities[-1] if nothing else probabilities[target]
            weight = 0.1 if nothing else 1.0
            total, weights = total - weight * math.log(probability), weights + weight
        assert losses["loss_ce"].item() == pytest.approx(2 * total / weights)

    @pytest.mark.parametrize("unbiased", [False, True])
    def test_focal_cross_entropy(self, unbiased):
        losses, logits, classes = self.losses(focal=(5.0, 2.0), unbiased=unbiased)
        total = 0.0
        for row, target in zip(logits, classes.tolist(), strict=True):
            probabilities = softmax(row)
            probability = probabilities[target]
            if unbiased and target == OLD + NEW:
                probability += sum(probabilities[:OLD])
            total -= 5 * (1 - probability) ** 2 * math.log(probability)
        assert losses["loss_ce"].item() == pytest.approx(2 * total / len(classes))

    def test_masks_are_scored_as_always(self):
        plain, unbiased = self.losses()[0], self.losses(unbiased=True)[0]
        assert plain["loss_mask"] == unbiased["loss_mask"]
        assert plain["loss_dice"] == unbiased["loss_dice"]
        assert plain["loss_ce"] != unbiased["loss_ce"]
        same = self.losses(unbiased=False)[0]
        assert torch.equal(same["loss_ce"], plain["loss_ce"])


class TestPseudoLabels:
    """Return masks of 2 frames of 8 x 8 pixels and logits at half that size, made of squares."""

    def square(self, frames, rows, columns):
        logits = torch.full((2, 4, 4), -8.0)
        logits[frames, rows, columns] = 8.0
        return logits

    def label(self, *masks, ids=5):
        count = len(masks)
        stacked = torch.stack(masks) if masks else torch.zeros(0, 2, 8, 8, dtype=torch.bool)
        numbers = ids + torch.arange(count)[:, None].expand(-1, 2)
        return {"class_labels": torch.full((count,), OLD), "ids": numbers, "masks": stacked}

    def logits(self, *classes, strength=6.0):
        return torch.stack([strength * nn.functional.one_hot(torch.tensor(c), OLD + 1) for c in classes]).float()

    def test_objects_of_the_old_model_are_added(self):
        both = self.square(slice(None), slice(0, 2), slice(0, 2))
        second = self.square(1, slice(2, 4), slice(2, 4))
        nothing = self.square(slice(None), slice(2, 4), slice(0, 2))
        labelled = torch.zeros(2, 8, 8, dtype=torch.bool)
        labelled[:, 0, 7] = True
        label = self.label(labelled)
        found = pseudo_labels(self.logits(1, 0, OLD), torch.stack([both, second, nothing]), label)
        assert found["class_labels"].tolist() == [OLD, 1, 0]
        assert found["ids"].tolist() == [[5, 5], [6, 6], [-1, 7]]
        assert torch.equal(found["masks"][0], labelled)
        assert found["masks"].dtype == torch.bool
        expected = nn.functional.interpolate(both[None], size=(8, 8), mode="bilinear")[0] >= 0
        assert torch.equal(found["masks"][1], expected)
        assert not found["masks"][2, 0].any()
        assert found["masks"][2, 1].any()

    def test_labelled_pixels_belong_to_nothing_else(self):
        mask = self.square(slice(None), slice(0, 4), slice(0, 2))
        upper = torch.zeros(2, 8, 8, dtype=torch.bool)
        upper[:, :2] = True
        found = pseudo_labels(self.logits(1), mask[None], self.label(upper))
        assert found["class_labels"].tolist() == [OLD, 1]
        assert not (found["masks"][1] & upper).any()
        left = torch.zeros(2, 8, 8, dtype=torch.bool)
        left[..., :6] = True
        assert pseudo_labels(self.logits(1), mask[None], self.label(left))["class_labels"].tolist() == [OLD]

    def test_surer_of_two_queries_on_one_object_is_kept(self):
        mask = self.square(slice(None), slice(0, 2), slice(0, 2))
        logits = torch.cat([self.logits(1, strength=3.0), self.logits(0, strength=6.0)])
        found = pseudo_labels(logits, torch.stack([mask, mask]), self.label())
        assert found["class_labels"].tolist() == [0]
        assert found["ids"].tolist() == [[0, 0]]

    def test_the_share_counts_over_the_whole_clip(self):
        """Another mask takes nearly all pixels in one frame and none in the other."""
        mask = self.square(slice(None), slice(0, 2), slice(0, 4))
        other = self.square(0, slice(0, 4), slice(0, 3))
        logits = torch.cat([self.logits(1, strength=3.0), self.logits(0, strength=6.0)])
        found = pseudo_labels(logits, torch.stack([mask, other]), self.label())
        assert sorted(found["class_labels"].tolist()) == [0, 1]
        assert not (found["masks"][0] & found["masks"][1]).any()

    def test_threshold(self):
        mask = self.square(slice(None), slice(0, 2), slice(0, 2))[None]
        logits = self.logits(1, strength=2.0)
        score = logits.softmax(-1)[0, 1].item()
        assert len(pseudo_labels(logits, mask, self.label(), score - 0.01)["class_labels"]) == 1
        label = self.label()
        assert pseudo_labels(logits, mask, label, score + 0.01) is label
