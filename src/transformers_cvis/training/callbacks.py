# SPDX-License-Identifier: Apache-2.0
"""Callbacks: hooks through which methods and users run their own code during a training."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from ..processing import CvisVideoProcessor
from .recipe import Recipe


class RunningTrainer(Protocol):
    """The part of [`Trainer`] that callbacks may use.

    Attributes:
        recipe: recipe of the training.
        accelerator: Accelerate's state of the training: device, processes, gradient scaler.
        optimizer: AdamW over `trained_parameters`.
        trained_parameters: parameters that are not frozen.
    """

    recipe: Recipe
    accelerator: Accelerator
    optimizer: torch.optim.AdamW
    trained_parameters: list[torch.nn.Parameter]

    @property
    def unwrapped_model(self) -> torch.nn.Module:
        """The model, without the wrapper of a distributed run."""


@dataclass(frozen=True)
class Task:
    """Description of a task of a class-incremental training, passed to callbacks.

    Attributes:
        number: number of the task, 0 for the base.
        num_tasks: number of tasks of the schedule, the base included.
        class_names: new classes of this task.
        model: model with the classes of this task.
        dataset: training samples of this task.
        video_processor: processor that prepares the frames in training and evaluation.
        recipe: recipe of this task.
        is_trained: True if this run trains the task, False if the schedule gives a trained base.
    """

    number: int
    num_tasks: int
    class_names: list[str]
    model: PreTrainedModel
    dataset: Dataset
    video_processor: CvisVideoProcessor
    recipe: Recipe
    is_trained: bool = True

    @property
    def is_base(self) -> bool:
        """True for the first task."""
        return self.number == 0

    @property
    def is_last(self) -> bool:
        """True for the last task."""
        return self.number == self.num_tasks - 1


class TrainingCallback:
    """Base class of callbacks, whose hooks do nothing by default.

    The trainer calls the first three hooks in every optimiser step; a class-incremental run calls the other two before
    and after the training of each task. In a distributed run every process calls them. An interrupted training
    continues bit for bit only if no callback draws random numbers or keeps state between steps.
    """

    def before_step(self, trainer: RunningTrainer, step: int) -> None:
        """Run before the forward pass of an optimiser step.

        Args:
            trainer: the running trainer; `trainer.unwrapped_model` is the model.
            step: number of the optimiser step, 0 to `trainer.recipe.max_steps - 1`.
        """

    def after_backward(self, trainer: RunningTrainer) -> None:
        """Run when the gradients of an optimiser step are complete, before they are clipped.

        In fp16 the gradients are still scaled by `trainer.accelerator.scaler`.

        Args:
            trainer: the running trainer.
        """

    def after_step(self, trainer: RunningTrainer, step: int) -> None:
        """Run after the optimiser has updated the weights, before a checkpoint is saved.

        Args:
            trainer: the running trainer.
            step: number of the optimiser step, like in `before_step`.
        """

    def before_task(self, task: Task) -> None:
        """Run before the training of a task, when the model has its classes; skipped for a trained base."""

    def after_task(self, task: Task) -> None:
        """Run after the training of a task, before its evaluation; also called for a trained base."""


@runtime_checkable
class FollowsTrainingProgress(Protocol):
    """A model whose losses change during a training, such as SPVIS with its guided matching."""

    def set_training_progress(self, progress: float) -> None:
        """Set the fraction of the training that is done, 0 to 1."""


class TrainingProgress(TrainingCallback):
    """Set the progress of the training on a [`FollowsTrainingProgress`] model."""

    def before_step(self, trainer: RunningTrainer, step: int) -> None:
        """Set the progress to the fraction of finished steps."""
        trainer.unwrapped_model.set_training_progress(step / trainer.recipe.max_steps)


def with_model_callbacks(model: torch.nn.Module, callbacks: Iterable[TrainingCallback] = ()) -> list[TrainingCallback]:
    """Return the callbacks that a model needs for its training, followed by `callbacks`."""
    needed = [TrainingProgress()] if isinstance(model, FollowsTrainingProgress) else []
    return [*needed, *callbacks]


__all__ = [
    "FollowsTrainingProgress",
    "RunningTrainer",
    "Task",
    "TrainingCallback",
    "TrainingProgress",
    "with_model_callbacks",
]
