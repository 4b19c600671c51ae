# SPDX-License-Identifier: Apache-2.0
"""Orthogonal gradient correction: the protected subspace, in which nothing moves."""

import pytest
import torch

from transformers_cvis.continual.gradient_projection import (
    FeatureEnergy,
    GradientProjection,
    collect_directions,
    grow_basis,
    grow_basis_released,
    project_out,
    released_representation,
)
from transformers_cvis.data import collate_clips
from transformers_cvis.processing import CvisVideoProcessor

CHANNELS = 16


def features(rank: int, seed: int = 0, num_rows: int = 200) -> torch.Tensor:
    """Return rows in a random subspace with falling energy."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=generator))[0][:, :rank]
    scale = torch.linspace(2, 1, rank)
    return torch.randn(num_rows, rank, generator=generator) * scale @ directions.T


def energy(*parts: torch.Tensor, **options) -> torch.Tensor:
    collected = FeatureEnergy(CHANNELS, **options)
    for part in parts:
        collected.update(part)
    return collected.matrix()


def held_share(basis: torch.Tensor, rows: torch.Tensor) -> float:
    rows = rows.double()
    return float((rows @ basis).square().sum() / rows.square().sum())


def test_energy_of_parts_is_that_of_all_rows():
    rows = features(5)
    expected = rows.double().T @ rows.double()
    torch.testing.assert_close(energy(rows[:120].view(4, 30, CHANNELS), rows[120:]), expected)
    centred = rows.double() - rows.double().mean(dim=0)
    torch.testing.assert_close(energy(rows[:120], rows[120:], centre=True), centred.T @ centred)


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.95])
def test_the_fewest_directions_that_hold_the_threshold(threshold):
    rows = features(8)
    basis = grow_basis(energy(rows), threshold)
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
    assert held_share(basis[:, :-1], rows) < threshold <= held_share(basis, rows)


def test_a_basis_grows_over_tasks_and_keeps_what_it_had():
    first_rows, second_rows = features(4, seed=0), features(4, seed=1)
    first = grow_basis(energy(first_rows), 0.9)
    second = grow_basis(energy(second_rows), 0.9, first)
    assert torch.equal(second[:, : first.shape[1]], first)
    assert second.shape[1] > first.shape[1]
    torch.testing.assert_close(second.T @ second, torch.eye(second.shape[1], dtype=torch.float64))
    assert held_share(second, second_rows) >= 0.9
    assert held_share(second, first_rows) >= 0.9
    assert torch.equal(grow_basis(energy(first_rows), 0.9, second), second)  # nothing to add


def test_all_energy_is_all_directions_that_have_any():
    assert grow_basis(energy(features(6)), 1.0).shape == (CHANNELS, 6)
    assert grow_basis(energy(features(CHANNELS)), 1.0).shape == (CHANNELS, CHANNELS)
    assert grow_basis(energy(torch.zeros(3, CHANNELS)), 0.9).shape == (CHANNELS, 0)


def test_released_growth_keeps_one_direction_fewer_and_differs():
    rows = features(8).double()
    basis = grow_basis_released(rows.T, 0.5)
    values = torch.linalg.svdvals(rows).pow(4)
    shares = values.cumsum(0) / values.sum()
    assert basis.shape == (CHANNELS, int((shares < 0.5).sum()))
    assert basis.shape[1] < grow_basis(energy(rows), 0.5).shape[1]
    grown = grow_basis_released(features(8, seed=1).T, 0.5, basis)
    torch.testing.assert_close(grown.T @ grown, torch.eye(grown.shape[1], dtype=torch.float64))


def test_released_representation_is_made_of_the_first_frames():
    samples = torch.randn(12, 40, dtype=torch.float64)
    scores = released_representation(samples, num_rows=8, num_components=5)
    assert scores.shape == (8, 5)
    centred = samples[:8] - samples[:8].mean(dim=0)
    torch.testing.assert_close(scores.T @ scores, torch.diag(torch.linalg.svdvals(centred)[:5].square()))
    with pytest.raises(ValueError, match="The released procedure needs 256 frames, got 12"):
        released_representation(samples)


class TinyLearner(torch.nn.Module):
    """Map frames of 32 x 32 pixels to 3 queries of 256 channels; earlier tasks left directions."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, directions: torch.Tensor | None):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(32 * 32, 3 * 256)
        self.directions = directions

    def protected_directions(self):
        return self.directions

    def prompt_features(self, frames):
        assert not self.training
        return self.layer(frames.mean(dim=1).flatten(1)).unflatten(1, (3, 256))


class Clips(torch.utils.data.Dataset):
    """Clip n has 5 frames of random numbers that depend on n alone."""

    def __init__(self):
        self.looked_at = []

    def __getitem__(self, number):
        self.looked_at.append(number)
        frames = 255 * torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(number))
        return {"pixel_values_videos": frames, "labels": {"masks": torch.zeros(0, 5, 32, 32)}}


@pytest.mark.parametrize("num_earlier", [None, 0, 7])
@torch.no_grad()
def test_released_directions_are_those_of_the_first_256_frames(num_earlier):
    before = None if num_earlier is None else torch.eye(256, dtype=torch.float64)[:, :num_earlier]
    model, clips = TinyLearner(before).train(), Clips()
    directions = collect_directions(model, clips, CvisVideoProcessor(), "released", threshold=0.9, num_clips=300)
    assert model.training
    assert clips.looked_at == list(range(52))
    videos = collate_clips([clips[number] for number in range(52)], CvisVideoProcessor())["pixel_values_videos"]
    samples = torch.cat([model.eval().prompt_features(video).flatten(1) for video in videos])
    basis = grow_basis_released(released_representation(samples), 0.9, before)
    assert torch.equal(directions, basis[:, num_earlier or 0 :])
    assert directions.shape[1] > 0
    whole = directions if before is None else torch.cat([before, directions], dim=1)
    torch.testing.assert_close(whole.T @ whole, torch.eye(whole.shape[1], dtype=torch.float64))
    prompt = torch.nn.Parameter(torch.zeros(4, 256))
    prompt.grad = torch.randn(4, 256)
    GradientProjection([prompt], whole, project_update=False).project_gradients()
    assert (prompt.grad @ whole.float()).abs().max() < 1e-4
    by_channel = collect_directions(model, clips, CvisVideoProcessor(), "features", threshold=0.9, num_clips=52)
    assert by_channel.shape[1] != directions.shape[1]
    with pytest.raises(ValueError, match=r"needs 256 frames, got 255: collect more clips \(`num_clips`\)"):
        collect_directions(model, clips, CvisVideoProcessor(), "released", num_clips=51)


def trained_change(projection: bool, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the change of a prompt over some steps of AdamW on a loss with gradients everywhere, and the basis."""
    basis = grow_basis(energy(features(6)), 0.8)
    torch.manual_seed(0)
    prompt = torch.nn.Parameter(torch.randn(5, CHANNELS))
    start, target = prompt.detach().clone(), torch.randn(5, CHANNELS)
    optimizer = torch.optim.AdamW([prompt], lr=0.05, weight_decay=0.1)
    corrected = GradientProjection([prompt], basis, **options) if projection else None
    for _ in range(20):
        optimizer.zero_grad()
        (prompt - target).square().sum().backward()
        if corrected is not None:
            corrected.project_gradients()
        optimizer.step()
        if corrected is not None:
            corrected.project_changes()
    return prompt.detach() - start, basis.float()


def test_with_the_correction_a_prompt_does_not_move_in_the_basis():
    change, basis = trained_change(projection=True)
    assert (change @ basis).abs().max() < 1e-5
    assert change.abs().max() > 0.1


def test_without_it_or_on_gradients_alone_it_does():
    for change, basis in (trained_change(projection=False), trained_change(projection=True, project_update=False)):
        assert (change @ basis).abs().max() > 1e-2


def test_gradients_lose_the_component_and_keep_the_rest():
    basis = grow_basis(energy(features(6)), 0.8)
    gradient = torch.randn(5, CHANNELS)
    parameter, without_gradient = (
        torch.nn.Parameter(torch.zeros(5, CHANNELS)),
        torch.nn.Parameter(torch.zeros(CHANNELS)),
    )
    parameter.grad = gradient.clone()
    GradientProjection([parameter, without_gradient], basis).project_gradients()
    assert (parameter.grad @ basis.float()).abs().max() < 1e-5
    lost = gradient - parameter.grad
    torch.testing.assert_close(project_out(lost, basis), torch.zeros_like(lost), atol=1e-5, rtol=0)
    parameter.grad = gradient.clone()
    GradientProjection([parameter], basis[:, :0]).project_gradients()
    assert torch.equal(parameter.grad, gradient)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="The features have 3 channels, expected 16"):
        FeatureEnergy(CHANNELS).update(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="not finite"):
        FeatureEnergy(CHANNELS).update(torch.full((2, CHANNELS), float("nan")))
    with pytest.raises(ValueError, match="No features were collected"):
        FeatureEnergy(CHANNELS).matrix()
    with pytest.raises(ValueError, match="`threshold` must be a share of the energy from 0 to 1, got 70"):
        grow_basis(torch.eye(3), 70)
    with pytest.raises(ValueError, match=r"shape \(3, 4\), expected \(channels, channels\)"):
        grow_basis(torch.zeros(3, 4), 0.5)
    with pytest.raises(ValueError, match="has 4 rows, but the new features have 3"):
        grow_basis(torch.eye(3), 0.5, torch.eye(4))
    with pytest.raises(ValueError, match=r"must have the 3 channels of the basis, got the shapes \[\(5, 16\)\]"):
        GradientProjection([torch.nn.Parameter(torch.zeros(5, CHANNELS))], torch.eye(3))
    with pytest.raises(ValueError, match="not orthonormal"):
        GradientProjection([torch.nn.Parameter(torch.zeros(5, 3))], 2 * torch.eye(3))
