# SPDX-License-Identifier: Apache-2.0
"""Callbacks: the fixed points of a training at which methods and users add code of their own."""

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
        recipe: the recipe of the training.
        accelerator: Accelerate's part in it: device, processes, gradient scaler.
        optimizer: AdamW over `trained_parameters`.
        trained_parameters: parameters that are not frozen.
    """

    recipe: Recipe
    accelerator: Accelerator
    optimizer: torch.optim.Optimizer
    trained_parameters: list[torch.nn.Parameter]

    @property
    def unwrapped_model(self) -> torch.nn.Module:
        """The model, without the wrapper of a distributed run."""


@dataclass(frozen=True)
class Task:
    """A task of a class-incremental training, as callbacks get it.

    Attributes:
        number: 0 for the base.
        num_tasks: number of all tasks of the schedule, the base included.
        class_names: new classes of this task.
        model: model with the classes of this task.
        dataset: training samples of this task.
        video_processor: processor of the model, with which training and evaluation prepare frames.
        recipe: training of this task.
        is_trained: whether this run trains the task; False for a base that was given.
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
        """Whether it is the first task."""
        return self.number == 0

    @property
    def is_last(self) -> bool:
        """Whether no task follows."""
        return self.number == self.num_tasks - 1


class TrainingCallback:
    """Base class of callbacks. Override the hooks that are needed; all of them do nothing by default.

    The trainer calls the first three in every optimiser step; a class-incremental run calls the other two around the
    training of each task. In a distributed run every process calls them. A callback that draws random numbers or keeps
    a state from step to step gives up that an interrupted training continues bit for bit.
    """

    def before_step(self, trainer: RunningTrainer, step: int) -> None:
        """Run before the forward pass of an optimiser step.

        Args:
            trainer: the trainer; `trainer.unwrapped_model` is the model.
            step: number of the optimiser step; 0 is the first of `trainer.recipe.max_steps`.
        """

    def after_backward(self, trainer: RunningTrainer) -> None:
        """Run once the gradients of an optimiser step are complete, before they are clipped.

        In fp16 they are still scaled by `trainer.accelerator.scaler`.
        """

    def after_step(self, trainer: RunningTrainer, step: int) -> None:
        """Run after the optimiser has moved the weights, before a checkpoint is saved; `step` as in `before_step`."""

    def before_task(self, task: Task) -> None:
        """Run when `task.model` has the classes of a task, before its training; not for a base that was given."""

    def after_task(self, task: Task) -> None:
        """Run when a task was learnt, before it is evaluated and saved; also for a base that was given."""


@runtime_checkable
class FollowsTrainingProgress(Protocol):
    """A model whose losses change in the course of a training, such as SPVIS with its guided matching."""

    def set_training_progress(self, progress: float) -> None:
        """Set the share of the training that is done, 0 to 1."""


class TrainingProgress(TrainingCallback):
    """Tell the model before each step which share of the training is done."""

    def before_step(self, trainer: RunningTrainer, step: int) -> None:
        trainer.unwrapped_model.set_training_progress(step / trainer.recipe.max_steps)


def with_model_callbacks(model: torch.nn.Module, callbacks: Iterable[TrainingCallback] = ()) -> list[TrainingCallback]:
    """Return the callbacks that the training of a model needs, followed by `callbacks`."""
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
