# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from transformers_cvis.modeling.losses import PointSampler, sample_points, select_uncertain_points


def test_pixel_centres_are_at_half_integers_and_outside_is_zero():
    maps = torch.arange(6.0).view(1, 1, 2, 3)
    centres = torch.tensor([[[0.5 / 3, 0.25], [2.5 / 3, 0.75], [1 / 3, 0.25], [0.0, 0.25], [-1.0, 0.5]]])
    maps_plus_one = sample_points(maps + 1, centres)[0, 0]
    torch.testing.assert_close(maps_plus_one, torch.tensor([1.0, 6.0, 1.5, 0.5, 0.0]))


def test_selected_points_are_the_most_uncertain_candidates():
    torch.manual_seed(0)
    logits = torch.randn(3, 2, 8, 10)
    candidates, extra = torch.rand(3, 60, 2), torch.rand(3, 2, 5, 2)
    points = select_uncertain_points(logits, candidates, extra, 15)
    assert points.shape == (3, 2, 20, 2)
    assert torch.equal(points[:, :, 15:], extra)
    uncertainty = sample_points(logits, candidates).abs()
    chosen = sample_points(logits.flatten(0, 1).unsqueeze(1), points[:, :, :15].flatten(0, 1)).abs().view(3, 2, 15)
    torch.testing.assert_close(chosen.sort(dim=2).values, uncertainty.sort(dim=2).values[:, :, :15])


def test_importance_sampling_statistics():
    """Three quarters of the points gather at a vertical edge, the rest is uniform."""
    torch.manual_seed(0)
    columns = torch.arange(32.0) - 15.5  # the logit is zero in the middle
    logits = columns.expand(4, 1, 24, 32)
    points = PointSampler(num_points=400).loss_points(logits)
    assert points.shape == (4, 1, 400, 2)
    assert points.min() >= 0
    assert points.max() <= 1
    uncertain, uniform = points[:, 0, :300], points[:, 0, 300:]
    # 300 of 1200 uniform candidates: a quarter of the width; twice as far at the upper and lower border, where zero
    # padding halves the logits
    assert (uncertain[..., 0] - 0.5).abs().max() < 0.26
    torch.testing.assert_close(uncertain[..., 1].mean(), torch.tensor(0.5), atol=0.05, rtol=0)
    torch.testing.assert_close(uniform.mean(dim=(0, 1)), torch.tensor([0.5, 0.5]), atol=0.06, rtol=0)
    assert (uniform[..., 0] - 0.5).abs().max() > 0.4


def test_points_follow_the_seed_and_the_dtype():
    sampler = PointSampler(num_points=16)
    logits = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    torch.manual_seed(3)
    first = sampler.matching_points(2, like=logits), sampler.loss_points(logits)
    torch.manual_seed(3)
    second = sampler.matching_points(2, like=logits), sampler.loss_points(logits)
    for one, other in zip(first, second, strict=True):
        assert one.dtype == torch.float64
        assert torch.equal(one, other)


@pytest.mark.parametrize("arguments", [(0,), (10, 0.5), (10, 3.0, 1.5)])
def test_impossible_settings(arguments):
    with pytest.raises(ValueError, match="num_points >= 1, oversample_ratio >= 1"):
        PointSampler(*arguments)
