# SPDX-License-Identifier: Apache-2.0
"""Callbacks: the calls of the trainer, permitted changes, and the callbacks of a model."""

import torch

from tests.support.standin import StandInModel, train_standin
from tests.support.tiny_run import tiny_recipe
from transformers_cvis.data import make_moving_shapes
from transformers_cvis.training import TrainingCallback, train
from transformers_cvis.training.callbacks import TrainingProgress, with_model_callbacks


class Recorder(TrainingCallback):
    """Record the name and step of every call, and the weights and gradients of one layer."""

    def __init__(self):
        self.calls, self.weights, self.gradients = [], [], []

    def weight(self, trainer) -> torch.nn.Parameter:
        return trainer.unwrapped_model.layers[0].weight

    def before_step(self, trainer, step):
        self.calls.append(("before_step", step))
        self.weights.append(self.weight(trainer).detach().clone())

    def after_backward(self, trainer):
        self.calls.append(("after_backward", None))
        self.gradients.append(self.weight(trainer).grad.clone())
        assert torch.equal(self.weight(trainer), self.weights[-1])

    def after_step(self, trainer, step):
        self.calls.append(("after_step", step))
        assert not torch.equal(self.weight(trainer), self.weights[-1])


def test_hooks_of_every_optimiser_step(tmp_path):
    """Gradients of all accumulated micro-batches are summed and not clipped yet."""
    recorder = Recorder()
    overrides = ["max_steps=3", "gradient_accumulation_steps=2", "optimizer.max_gradient_norm=1e-6"]
    train_standin(tmp_path, overrides, callbacks=[recorder])
    expected = [(name, step) for step in range(3) for name in ("before_step", "after_backward", "after_step")]
    assert recorder.calls == [(name, None if name == "after_backward" else step) for name, step in expected]
    assert all(gradient.norm() > 1e-3 for gradient in recorder.gradients)


def test_callbacks_run_in_their_order_and_reach_the_weights(tmp_path):
    class Double(TrainingCallback):
        def after_backward(self, trainer):
            for parameter in trainer.trained_parameters:
                parameter.grad.mul_(2)

    class PutBack(TrainingCallback):
        def before_step(self, trainer, step):
            self.weights = [parameter.detach().clone() for parameter in trainer.trained_parameters]

        def after_step(self, trainer, step):
            with torch.no_grad():
                for parameter, weight in zip(trainer.trained_parameters, self.weights, strict=True):
                    parameter.copy_(weight)

    first, second = Recorder(), Recorder()
    model, _ = train_standin(tmp_path, ["max_steps=2"], callbacks=[first, Double(), second, PutBack()])
    assert torch.equal(second.gradients[0], 2 * first.gradients[0])
    assert torch.equal(model.layers[0].weight, first.weights[0])


def test_model_gets_the_progress_of_training(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        StandInModel, "set_training_progress", lambda self, progress: told.append(progress), raising=False
    )
    overrides = ["max_steps=8", "gradient_accumulation_steps=2"]
    train_standin(tmp_path, [*overrides, "checkpoint_every=2"])
    assert told == [step / 8 for step in range(8)]
    train_standin(tmp_path, overrides, resume=tmp_path / "checkpoints/step-00000006")  # as after an interruption
    assert told[8:] == [6 / 8, 7 / 8]


def test_only_models_that_follow_the_progress_get_it(tmp_path):
    recorder = Recorder()
    assert with_model_callbacks(torch.nn.Linear(1, 1), [recorder]) == [recorder]
    model = torch.nn.Linear(1, 1)
    model.set_training_progress = lambda progress: None
    first, second = with_model_callbacks(model, [recorder])
    assert isinstance(first, TrainingProgress)
    assert second is recorder


def test_train_takes_callbacks(tmp_path):
    """They run together with those of the model: SPVIS gets the progress of the training."""
    seen = []

    class Progress(TrainingCallback):
        def before_step(self, trainer, step):
            seen.append(trainer.unwrapped_model.training_progress)

    data = make_moving_shapes(tmp_path / "data", 2, 1, num_frames=3, size=(64, 96), seed=3)
    train(tiny_recipe(data, "spvis", max_steps=2, checkpoint_every=0), tmp_path / "out", callbacks=[Progress()])
    assert seen == [0.0, 0.5]
