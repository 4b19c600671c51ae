# SPDX-License-Identifier: Apache-2.0
"""Records of the tasks of one model, which switching between tasks and saving them need."""

from dataclasses import dataclass, field

import torch

from .adapter_files import BaseReference, TaskAdapter, TaskTensors


@dataclass(eq=False)
class AdapterStore:
    """Records of a model's tasks apart from its weights. All tensors are on the CPU; task 0 is the base.

    Attributes:
        waiting (`list[TaskAdapter]`): tasks that are in memory but not active, in order; they follow the active ones.
        no_object (`dict[int, dict[str, torch.Tensor]]`): no-object heads after each active task, by their names in the
            model. The last active task has no entry, since its heads are the parameters of the model. Earlier ones have
            none if the weights were not saved by this package.
        directions (`dict[int, torch.Tensor]`): orthonormal columns of shape `(channels, rank)` that an active task
            protects from later ones; each is orthogonal to those of the other tasks.
        base ([`BaseReference`], *optional*): place of the base, with an absolute path if it is a folder, without
            hashes; None while the base is in memory only.
    """

    waiting: list[TaskAdapter] = field(default_factory=list)
    no_object: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    directions: dict[int, torch.Tensor] = field(default_factory=dict)
    base: BaseReference | None = None

    def begin_task(self, task: int, no_object: dict[str, torch.Tensor]) -> None:
        """Record the no-object heads after the task before `task`."""
        self.no_object[task - 1] = no_object

    def end_task(self, task: int) -> dict[str, torch.Tensor]:
        """Drop the records of the last active task; return the no-object heads after the task before, {} if unknown."""
        self.directions.pop(task, None)
        return self.no_object.pop(task - 1, {})

    def protect(self, task: int, directions: torch.Tensor) -> None:
        """Record a copy of the directions that a task protects, `(channels, rank)`."""
        self.directions[task] = copy_to_cpu(directions)

    def protected(self) -> torch.Tensor | None:
        """Return the directions of all active tasks in order, `(channels, sum of ranks)`, or None."""
        parts = [self.directions[task] for task in sorted(self.directions)]
        return torch.cat(parts, dim=1) if parts else None

    def tensors(self) -> TaskTensors:
        """Return the tensors that a whole model saves next to its weights."""
        return TaskTensors(no_object=self.no_object, directions=self.directions)

    def restore(self, tensors: TaskTensors) -> None:
        """Add the tensors that a whole model saved next to its weights."""
        self.no_object |= tensors.no_object
        self.directions |= tensors.directions


def copy_to_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous copy on the CPU, of the same dtype and without a gradient."""
    return tensor.detach().to("cpu", copy=True).contiguous()
