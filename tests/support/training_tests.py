# SPDX-License-Identifier: Apache-2.0
"""Common tests of the training of video models; part of `CommonTests`."""

import pytest
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from tests.support.video_data import loss_of, video_batch, video_labels


class TrainingTests:
    """Tests of losses, gradients and checkpointing; subclasses have `model(**changes)` and `nothing_frozen`."""

    def test_every_trainable_parameter_gets_a_gradient(self):
        model = self.model()
        loss_of(model).backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name

    def test_videos_without_objects_train(self):
        model = self.model()
        empty = {
            "class_labels": torch.zeros(0, dtype=torch.long),
            "ids": torch.zeros(0, 4, dtype=torch.long),
            "masks": torch.zeros(0, 4, 64, 96, dtype=torch.bool),
        }
        output = model.train()(video_batch(), labels=[empty, dict(empty)])
        assert torch.isfinite(output.loss)
        output.loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)

    def test_loss_is_the_sum_of_its_parts(self):
        torch.manual_seed(0)
        output = self.model().train()(video_batch(), labels=video_labels())
        torch.testing.assert_close(output.loss, sum(output.loss_dict.values()))
        assert all(loss.ndim == 0 for loss in output.loss_dict.values())
        assert output.score_rule is None  # losses only, since tracks are not scored in training

    def test_optimiser_steps_reduce_the_loss(self):
        model = self.model(**self.nothing_frozen)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        losses = []
        for _ in range(12):
            loss = loss_of(model)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]

    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_gradient_checkpointing_changes_nothing(self, use_reentrant):
        plain, saving = self.model(**self.nothing_frozen), self.model(**self.nothing_frozen)
        saving.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        layers = [module for module in saving.modules() if isinstance(module, GradientCheckpointingLayer)]
        assert layers
        assert all(layer.gradient_checkpointing for layer in layers)
        for model in (plain, saving):
            # Batch statistics would move twice where the forward pass is repeated.
            loss_of(model).backward()
        for (name, expected), parameter in zip(plain.named_parameters(), saving.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, expected.grad, msg=name)
