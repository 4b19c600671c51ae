# SPDX-License-Identifier: Apache-2.0
"""Learning task by task: add, switch and remove the tasks of a model in memory (HVPL, CRISP)."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from ...messages import did_you_mean
from .adapter_files import TaskAdapter, task_name
from .adapter_store import AdapterStore, copy_to_cpu
from .places import no_object_parts, parts_of_task

if TYPE_CHECKING:  # the mixin precedes such a model in the bases
    from ..modeling_base import CvisPreTrainedModel as _Model
else:
    _Model = object


def check_tasks(config: PreTrainedConfig, fewest_prompts: int = 1) -> None:
    """Check that `task_class_counts` and `task_prompt_counts` fit each other and the classes.

    Args:
        config: configuration of a model that learns task by task.
        fewest_prompts: fewest prompts of a task; 0 if all tasks of a model can do without prompts.

    Raises:
        ValueError: the counts do not fit.
    """
    class_counts, prompt_counts = config.task_class_counts, config.task_prompt_counts
    if sum(class_counts) != config.num_labels or min(class_counts, default=0) < 1:
        raise ValueError(
            f"`task_class_counts` {class_counts} must be at least 1 each and add up to the {config.num_labels} "
            "classes of `id2label`."
        )
    if len(prompt_counts) != len(class_counts) - 1 or min(prompt_counts, default=fewest_prompts) < fewest_prompts:
        raise ValueError(
            f"`task_prompt_counts` {prompt_counts} must be at least {fewest_prompts} for each of the "
            f"{len(class_counts) - 1} tasks after the base in `task_class_counts`."
        )
    if 0 in prompt_counts and any(prompt_counts):
        raise ValueError(
            f"`task_prompt_counts` {prompt_counts} mixes tasks with prompts, which leave older ones untouched, and "
            "tasks without prompts, which train all weights: use one kind."
        )


def config_before_tasks(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the configuration of the base of a model that has learnt tasks."""
    config = copy.deepcopy(config)
    names = list(config.id2label.values())[: config.task_class_counts[0]]
    config.task_class_counts, config.task_prompt_counts = config.task_class_counts[:1], []
    config.id2label = dict(enumerate(names))
    config._commit_hash = None  # transformers would look for the files of the base in this commit of the adapter
    return config


class TaskLearningMixin(_Model):
    """Mixin for learning task by task; precedes the video model in the bases of a model.

    The configuration has `task_class_counts`, `task_prompt_counts` and `id2label`, with classes in task order.
    Task 0 is the base. Each later task adds prompts, mask heads and class heads; everything else is then frozen, except
    the no-object heads, which every task trains further. A task without prompts adds class heads only, and trains all
    weights.

    The tasks after the base are called `task-1`, `task-2`, ... Only active tasks predict; tasks that are loaded but not
    active stay in memory. Tasks build on each other, so the active ones are always the first ones.

    Attributes:
        fewest_prompts (`int`): fewest prompts of a task. With 0, a task can do without prompts: it adds only class
            heads, and all weights of the model train.
    """

    config: Any

    fewest_prompts = 1

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self._store = AdapterStore()

    def task_stages(self) -> dict[str, nn.Module]:
        """Return the modules that hold groups of task queries, by their path in the model; "" is the model itself.

        Each has `task_queries`, one entry per later task; `class_predictor.heads`, the no-object head and then one head
        per task; `add_task(num_classes, num_prompts)`; `remove_task()`; and a `criterion`, unless it shares the
        model's.
        """
        raise NotImplementedError

    @property
    def num_tasks(self) -> int:
        """Number of active tasks, the base included."""
        return len(self.config.task_class_counts)

    @property
    def active_task_adapters(self) -> list[str]:
        """Names of the active tasks, without the base."""
        return [task_name(task) for task in range(1, self.num_tasks)]

    @property
    def loaded_task_adapters(self) -> list[str]:
        """Names of all tasks in memory, active or not, without the base."""
        return [task_name(task) for task in range(1, self.num_tasks + len(self._store.waiting))]

    @property
    def learns_by_prompts(self) -> bool:
        """Whether the model has tasks after the base, with prompts, so that everything else is frozen."""
        return self.num_tasks > 1 and self.config.task_prompt_counts[-1] > 0

    @property
    def most_objects(self) -> float:
        """Most objects of a training video; unlimited for tasks with prompts, whose losses leave out the rest."""
        return math.inf if self.learns_by_prompts else super().most_objects

    def classes_of_task(self, task: int) -> list[str]:
        """Return the names of the classes of an active task; 0 is the base."""
        counts = self.config.task_class_counts
        return list(self.config.id2label.values())[sum(counts[:task]) : sum(counts[: task + 1])]

    # Adding and removing

    def add_task(self, class_names: list[str], num_prompts: int) -> None:
        """Add a task: a group of prompts and heads at every stage, which train with the no-object heads.

        With 0 prompts, a task adds only class heads, and all weights train that `frozen_modules` does not name.

        Args:
            class_names: classes of the new task, appended to `config.id2label`.
            num_prompts: prompts at each stage, the most objects of the new classes that are found in a video. If a
                training video shows more, those that fit worst are left out of its losses.

        Raises:
            ValueError: no class or too few prompts are given, a class is known already, or a task in memory is not
                active.
        """
        if self._store.waiting:
            raise ValueError(
                f"{task_name(self.num_tasks)} is in memory, but not active: activate it with `set_task_adapters` or "
                "drop it with `delete_task_adapter` before you add another task."
            )
        known = set(self.config.label2id)
        twice = sorted({name for name in class_names if name in known or class_names.count(name) > 1})
        if twice:
            raise ValueError(f"Classes {twice} are known already or given twice: give each new class once.")
        if not class_names or num_prompts < self.fewest_prompts:
            raise ValueError(
                f"A task needs at least 1 class and {self.fewest_prompts} prompt, got {len(class_names)} and "
                f"{num_prompts}."
            )
        config = self.config
        if self.num_tasks > 1 and self.learns_by_prompts != (num_prompts > 0):
            raise ValueError(
                f"The tasks of this model have {'prompts' if self.learns_by_prompts else 'no prompts'}, so a new one "
                f"cannot have {num_prompts}."
            )
        no_object_heads = _copies(self.no_object_parameters())
        self._add_groups(len(class_names), num_prompts)
        self._store.begin_task(self.num_tasks, no_object_heads)
        config.task_class_counts = [*config.task_class_counts, len(class_names)]
        config.task_prompt_counts = [*config.task_prompt_counts, num_prompts]
        self._set_classes([*config.id2label.values(), *class_names])

    def remove_task(self) -> None:
        """Remove the last task and restore the no-object heads of the task before it.

        Raises:
            ValueError: the model has no task after its base, or a later task in memory builds on the last active one.
        """
        if self._store.waiting:
            raise ValueError(
                f"{task_name(self.num_tasks)} in memory builds on the last active task: delete it first with "
                "`delete_task_adapter`, or activate fewer tasks with `set_task_adapters`."
            )
        self._remove_last_task()

    def _remove_last_task(self) -> None:
        if self.num_tasks == 1:
            raise ValueError("The base cannot be removed, and the model has no task after it.")
        self._remove_groups()
        config = self.config
        names = list(config.id2label.values())[: -config.task_class_counts[-1]]
        config.task_class_counts = config.task_class_counts[:-1]
        config.task_prompt_counts = config.task_prompt_counts[:-1]
        self._set_classes(names)
        _copy_into(self.no_object_parameters(), self._store.end_task(self.num_tasks))

    # Switching

    def set_task_adapters(self, names: Sequence[str] | int) -> None:
        """Activate the first tasks in memory; the others stay in memory.

        Args:
            names: tasks to activate, in order, beginning with `task-1`, or their number. An empty list or 0 leaves the
                base alone active.

        Raises:
            ValueError: a task is not in memory, one is skipped (`task-3` without `task-2`), the tasks are not
                adapters, or earlier no-object heads are unknown; the model stays as it is.
        """
        if self.num_tasks > 1:
            self._check_prompts()
        names = [names] if isinstance(names, str) else names
        loaded = self.loaded_task_adapters
        number = names if isinstance(names, int) else len(names)
        wanted = loaded[:number] if isinstance(names, int) else list(names)
        if not 0 <= number <= len(loaded) or wanted != loaded[:number]:
            raise ValueError(
                f"Cannot activate {names!r}: tasks build on each other, so the active ones must be the first of those "
                f"in memory, {loaded}."
            )
        if number < self.num_tasks - 1:
            self._no_object_heads(number)
        while self.num_tasks - 1 > number:
            self._store.waiting.insert(0, self._capture(self.num_tasks - 1))
            self._remove_last_task()
        while self.num_tasks - 1 < number:
            self._attach(self._store.waiting.pop(0))

    def delete_task_adapter(self, name: str) -> None:
        """Delete the last task in memory.

        Raises:
            ValueError: the task is not in memory, or other tasks build on it.
        """
        loaded = self.loaded_task_adapters
        if name not in loaded:
            raise ValueError(f"{name!r} is not in memory, which holds {loaded}.{did_you_mean(name, loaded)}")
        if name != loaded[-1]:
            raise ValueError(f"Other tasks build on {name}: delete {loaded[-1]} first.")
        if self._store.waiting:
            self._store.waiting.pop()
        else:
            self._remove_last_task()

    def _check_prompts(self) -> None:
        if not self.learns_by_prompts:
            raise ValueError(
                f"This {type(self).__name__} trains all of its weights, so its tasks are not adapters: save the whole "
                "model with `save_pretrained`."
            )

    def _no_object_heads(self, task: int) -> dict[str, torch.Tensor]:
        """Return the no-object heads after an active task; 0 is the base.

        Raises:
            ValueError: they are unknown.
        """
        if task == self.num_tasks - 1:
            return _copies(self.no_object_parameters())
        if task not in self._store.no_object:
            raise ValueError(
                f"The no-object heads after {task_name(task) if task else 'the base'} are unknown: these weights were "
                "not saved by transformers_cvis. So the model cannot switch back to that task, and its tasks cannot be "
                "saved as adapters. Save or push it whole (`save_pretrained`, `push_to_hub`)."
            )
        return self._store.no_object[task]

    def _capture(self, task: int) -> TaskAdapter:
        """Return a copy of an active task."""
        return TaskAdapter(
            class_names=self.classes_of_task(task),
            num_prompts=self.config.task_prompt_counts[task - 1],
            weights=_copies(self.task_parameters(task)),
            no_object=self._no_object_heads(task),
            directions=self._store.directions.get(task),
        )

    def _attach(self, adapter: TaskAdapter) -> None:
        """Append a task with its weights.

        Raises:
            ValueError: the weights do not fit the model, which then stays as it is.
        """
        task = self.num_tasks
        waiting, self._store.waiting = self._store.waiting, []
        try:
            self.add_task(adapter.class_names, adapter.num_prompts)
        finally:
            self._store.waiting = waiting
        own = {**self.task_parameters(task), **self.no_object_parameters()}
        given = {**adapter.weights, **adapter.no_object}
        if problem := _difference(given, own):
            self._remove_last_task()
            raise ValueError(f"{task_name(task)} does not fit this {type(self).__name__}: {problem}")
        _copy_into(own, given)
        if adapter.directions is not None:
            self._store.directions[task] = adapter.directions

    # Protected directions

    def protect_directions(self, directions: torch.Tensor) -> None:
        """Set the directions that the last active task protects from later ones; they are saved with its adapter.

        Args:
            directions: `(channels, rank)`, orthonormal, and orthogonal to those of earlier tasks.
        """
        self._store.protect(self.num_tasks - 1, directions)

    def protected_directions(self) -> torch.Tensor | None:
        """Return the directions that active tasks protect, in order, `(channels, sum of ranks)`, or None."""
        return self._store.protected()

    # Inside the model

    def _add_groups(self, num_classes: int, num_prompts: int) -> None:
        for stage in self.task_stages().values():
            stage.add_task(num_classes, num_prompts)

    def _remove_groups(self) -> None:
        for stage in self.task_stages().values():
            stage.remove_task()

    def _set_classes(self, names: list[str]) -> None:
        self.config.id2label = dict(enumerate(names))
        self._set_criteria()
        self._freeze()
        self.train(self.training)

    def post_init(self) -> None:
        """Initialise weights, freeze what does not train, and adapt the losses to the tasks."""
        super().post_init()
        self._set_criteria()

    def _set_criteria(self) -> None:
        for criterion in (module.criterion for module in self.modules() if hasattr(module, "criterion")):
            criterion.num_labels = self.config.num_labels
            # A video can show more new objects than the task has prompts.
            criterion.leave_surplus = self.learns_by_prompts or type(criterion).leave_surplus

    def task_parameters(self, task: int) -> dict[str, nn.Parameter]:
        """Return the parameters that an active task from 1 on added, by name, without the no-object heads.

        Raises:
            ValueError: the task is not active.
        """
        if not 1 <= task < self.num_tasks:
            raise ValueError(f"`task` is {task}, but the model has {self.num_tasks - 1} active tasks after its base.")
        return self._parameters_of(parts_of_task(task))

    def no_object_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the no-object heads, which every task trains further, by name."""
        return self._parameters_of(no_object_parts())

    def _parameters_of(self, parts: list[str]) -> dict[str, nn.Parameter]:
        prefixes = tuple(f"{stage}.{part}.".removeprefix(".") for stage in self.task_stages() for part in parts)
        return {name: parameter for name, parameter in self.named_parameters() if name.startswith(prefixes)}

    def frozen_modules(self) -> list[str]:
        """Return everything but the last task and the no-object heads; without prompts, as the video model does."""
        if not self.learns_by_prompts:
            return list(super().frozen_modules())
        trained = {**self.task_parameters(self.num_tasks - 1), **self.no_object_parameters()}
        return [name for name, _ in self.named_parameters() if name not in trained]


def _copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: copy_to_cpu(tensor) for name, tensor in tensors.items()}


@torch.no_grad()
def _copy_into(parameters: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)


def _difference(given: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> str | None:
    """Describe why `given` cannot be loaded into `own`, or return None."""
    missing, foreign = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or foreign:
        return f"it {f'lacks {missing[0]}' if missing else f'has {foreign[0]}, which the model lacks'}."
    for name, tensor in given.items():
        if tensor.shape != own[name].shape:
            return f"{name} has the shape {tuple(tensor.shape)}, the model's {tuple(own[name].shape)}."
    return None


__all__ = ["TaskLearningMixin", "check_tasks", "config_before_tasks"]
