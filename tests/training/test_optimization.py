# SPDX-License-Identifier: Apache-2.0
from itertools import pairwise

import pytest
import torch
from torch import nn

from transformers_cvis.training.optimization import learning_rate_factor, parameter_groups
from transformers_cvis.training.recipe import LearningRateScheduleSettings, OptimizerSettings


class WindowAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.query = nn.Linear(4, 4)


class Detector(nn.Module):
    """The kinds of parameters of the published groups, under the names of the frame detector."""

    def __init__(self):
        super().__init__()
        self.pixel_level_module = nn.ModuleDict(
            {
                "encoder": nn.ModuleDict(
                    {"convolution": nn.Conv2d(3, 4, 1), "norm": nn.LayerNorm(4), "attention": WindowAttention()}
                ),
                "decoder": nn.ModuleDict({"projection": nn.Conv2d(4, 4, 1), "group_norm": nn.GroupNorm(2, 4)}),
            }
        )
        self.level_embed = nn.Parameter(torch.zeros(3, 4))
        self.queries = nn.Embedding(5, 4)
        self.class_predictor = nn.Linear(4, 2)
        self.tied = self.class_predictor
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def test_every_parameter_is_in_the_right_group():
    groups = parameter_groups(Detector(), OptimizerSettings(learning_rate=1e-4))
    found = {tuple(group["parameter_names"]): (group["lr"], group["weight_decay"]) for group in groups}
    backbone, decoder = "pixel_level_module.encoder", "pixel_level_module.decoder"
    assert found == {
        (
            "level_embed",
            f"{decoder}.projection.weight",
            f"{decoder}.projection.bias",
            "class_predictor.weight",
            "class_predictor.bias",
        ): (1e-4, 0.05),
        (f"{decoder}.group_norm.weight", f"{decoder}.group_norm.bias", "queries.weight"): (1e-4, 0.0),
        (
            f"{backbone}.convolution.weight",
            f"{backbone}.convolution.bias",
            f"{backbone}.attention.query.weight",
            f"{backbone}.attention.query.bias",
        ): (pytest.approx(1e-5), 0.05),
        (
            f"{backbone}.norm.weight",
            f"{backbone}.norm.bias",
            f"{backbone}.attention.relative_position_bias_table",
        ): (pytest.approx(1e-5), 0.0),
    }
    for group in groups:
        assert len(group["params"]) == len(group["parameter_names"])


def test_a_frozen_model_cannot_be_trained():
    with pytest.raises(ValueError, match="The model has no parameters to train: all have requires_grad=False"):
        parameter_groups(Detector().requires_grad_(False), OptimizerSettings(learning_rate=1e-4))


def test_multi_step_schedule_without_warm_up():
    recipe = LearningRateScheduleSettings(milestones=[4, 6])
    factors = [learning_rate_factor(recipe, step, max_steps=8) for step in range(8)]
    # The reference: torch's scheduler, stepped after each optimiser step.
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [4, 6], gamma=0.1)
    for factor in factors:
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


def test_warm_up_and_cosine():
    recipe = LearningRateScheduleSettings(kind="cosine", factor=0.0, warmup_steps=4)
    factors = [learning_rate_factor(recipe, step, max_steps=15) for step in range(15)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[9] == pytest.approx(0.5 * (1 + torch.cos(torch.tensor(5 / 10 * torch.pi)).item()))
    assert factors[-1] == pytest.approx(0.0)
    assert all(later <= earlier for earlier, later in pairwise(factors[4:]))
