"""Learning task by task: what a model with groups of task queries knows of its tasks (HVPL, CRISP)."""

import math

from torch import nn
from transformers import PreTrainedConfig


def check_tasks(config: PreTrainedConfig, fewest_prompts: int = 1) -> None:
    """Raise a ValueError when `task_class_counts` and `task_prompt_counts` do not fit each other or the classes.

    Args:
        fewest_prompts: of a task; 0 where a model can learn without any, which then holds for all of its tasks.
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
            "tasks without, which train all weights: use one kind."
        )


class TaskLearningMixin:
    """Precedes the video model in the bases of a model that learns task by task.

    The configuration has `task_class_counts`, `task_prompt_counts` and `id2label`, whose classes come task after task.
    Task 0 is the base; each later task adds prompts, mask heads and class heads, and all else is frozen from then on,
    except the no-object heads, which every task trains further.

    Attributes:
        fewest_prompts (`int`): of a task. With 0, a task can do without prompts: it adds class heads alone, and all
            weights of the model train.
    """

    fewest_prompts = 1

    def task_stages(self) -> dict[str, nn.Module]:
        """The modules that hold groups of task queries, by their path in the model; "" is the model itself.

        Each has `task_queries`, one entry per later task, `class_predictor.heads`, the no-object head and then one per
        task, `add_task(num_classes, num_prompts)`, `remove_task()` and a `criterion` or shares that of the model.
        """
        raise NotImplementedError

    @property
    def num_tasks(self) -> int:
        """Tasks learnt so far, the base included."""
        return len(self.config.task_class_counts)

    @property
    def learns_by_prompts(self) -> bool:
        """Whether there are tasks after the base and they have prompts, so that all else is frozen."""
        return self.num_tasks > 1 and self.config.task_prompt_counts[-1] > 0

    @property
    def most_objects(self) -> float:
        """How many objects a video can have in training; objects beyond the prompts of a later task are left out."""
        return math.inf if self.learns_by_prompts else super().most_objects

    def add_task(self, class_names: list[str], num_prompts: int) -> None:
        """Start to learn new classes: a group of prompts and heads at every stage, all else frozen.

        Args:
            class_names: of the new task; `config.id2label` continues with them.
            num_prompts: prompts at each stage, the most objects of the new classes that are found in a video. Where a
                training video shows more, those that fit worst are left out of its losses.

        Raises:
            ValueError: when there is no class or no prompt, or a class is known already.
        """
        known = set(self.config.label2id)
        twice = sorted({name for name in class_names if name in known or class_names.count(name) > 1})
        if twice:
            raise ValueError(f"Classes {twice} are known already or named twice; a task brings new classes only.")
        if not class_names or num_prompts < self.fewest_prompts:
            raise ValueError(
                f"A task needs at least 1 class and {self.fewest_prompts} prompt, got {len(class_names)} and "
                f"{num_prompts}."
            )
        config = self.config
        if self.num_tasks > 1 and self.learns_by_prompts != (num_prompts > 0):
            raise ValueError(
                f"The tasks of this model have {'prompts' if self.learns_by_prompts else 'no prompts'}, so another one "
                f"cannot have {num_prompts}."
            )
        self._add_groups(len(class_names), num_prompts)
        config.task_class_counts = [*config.task_class_counts, len(class_names)]
        config.task_prompt_counts = [*config.task_prompt_counts, num_prompts]
        self._set_classes([*config.id2label.values(), *class_names])

    def remove_task(self) -> None:
        """Take away what the last task added. The no-object heads stay as they are.

        Raises:
            ValueError: when there is no task after the base.
        """
        if self.num_tasks == 1:
            raise ValueError("The base cannot be removed: the model has learnt no task after it.")
        self._remove_groups()
        config = self.config
        names = list(config.id2label.values())[: -config.task_class_counts[-1]]
        config.task_class_counts = config.task_class_counts[:-1]
        config.task_prompt_counts = config.task_prompt_counts[:-1]
        self._set_classes(names)

    def _add_groups(self, num_classes: int, num_prompts: int) -> None:
        for stage in self.task_stages().values():
            stage.add_task(num_classes, num_prompts)

    def _remove_groups(self) -> None:
        for stage in self.task_stages().values():
            stage.remove_task()

    def _set_classes(self, names: list[str]) -> None:
        self.config.id2label = dict(enumerate(names))
        self.config.label2id = {name: index for index, name in self.config.id2label.items()}
        self.config.share_labels()
        for module in self.modules():
            if hasattr(module, "criterion"):
                module.criterion.num_labels = len(names)
        self._freeze()
        self.train(self.training)

    def task_parameters(self, task: int) -> dict[str, nn.Parameter]:
        """What task `task` >= 1 added to the model, by name; without the no-object heads, which it trains, too."""
        if not 1 <= task < self.num_tasks:
            raise ValueError(f"There is no task {task} after the base: the model has learnt {self.num_tasks - 1}.")
        return self._parameters_of(self._task_parts(task))

    def _task_parts(self, task: int) -> list[str]:
        """What a task adds at every stage, by its path there."""
        return [f"task_queries.{task - 1}", f"class_predictor.heads.{task + 1}"]

    def no_object_parameters(self) -> dict[str, nn.Parameter]:
        """The heads that every task trains further, by name."""
        return self._parameters_of(["class_predictor.heads.0"])

    def _parameters_of(self, parts: list[str]) -> dict[str, nn.Parameter]:
        prefixes = tuple(f"{stage}.{part}.".removeprefix(".") for stage in self.task_stages() for part in parts)
        return {name: parameter for name, parameter in self.named_parameters() if name.startswith(prefixes)}

    def _freeze(self) -> None:
        if not self.learns_by_prompts:
            self.requires_grad_(True)
            super()._freeze()
            return
        self.requires_grad_(False)
        for parameter in {**self.task_parameters(self.num_tasks - 1), **self.no_object_parameters()}.values():
            parameter.requires_grad_(True)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.learns_by_prompts:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


__all__ = ["TaskLearningMixin", "check_tasks"]
