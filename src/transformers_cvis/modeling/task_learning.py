"""Learning task by task: what a model with groups of task queries knows of its tasks (HVPL, CRISP)."""

from torch import nn
from transformers import PreTrainedConfig


def check_tasks(config: PreTrainedConfig) -> None:
    """Raise a ValueError when `task_class_counts` and `task_prompt_counts` do not fit each other or the classes."""
    class_counts, prompt_counts = config.task_class_counts, config.task_prompt_counts
    if sum(class_counts) != config.num_labels or min(class_counts, default=0) < 1:
        raise ValueError(
            f"`task_class_counts` {class_counts} must be at least 1 each and add up to the {config.num_labels} "
            "classes of `id2label`."
        )
    if len(prompt_counts) != len(class_counts) - 1 or min(prompt_counts, default=1) < 1:
        raise ValueError(
            f"`task_prompt_counts` {prompt_counts} must be at least 1 for each of the {len(class_counts) - 1} "
            "tasks after the base in `task_class_counts`."
        )


class TaskLearningMixin:
    """Precedes the video model in the bases of a model that learns task by task.

    The configuration has `task_class_counts`, `task_prompt_counts` and `id2label`, whose classes come task after task.
    Task 0 is the base; each later task adds prompts, mask heads and class heads, and all else is frozen from then on,
    except the no-object heads, which every task trains further.
    """

    def task_levels(self) -> dict[str, nn.Module]:
        """The modules that hold groups of task queries, by their path in the model.

        Each has `task_queries`, one entry per later task, `class_predictor.heads`, the no-object head and then one per
        task, `add_task(num_classes, num_prompts)`, `remove_task()` and a `criterion` or shares that of the model.
        """
        raise NotImplementedError

    @property
    def num_tasks(self) -> int:
        """Tasks learnt so far, the base included."""
        return len(self.config.task_class_counts)

    def add_task(self, class_names: list[str], num_prompts: int) -> None:
        """Start to learn new classes: a group of prompts and heads at every level, all else frozen.

        Args:
            class_names: of the new task; `config.id2label` continues with them.
            num_prompts: prompts at each level, the most objects of the new classes in a video.

        Raises:
            ValueError: when there is no class or no prompt, or a class is known already.
        """
        known = set(self.config.label2id)
        twice = sorted({name for name in class_names if name in known or class_names.count(name) > 1})
        if twice:
            raise ValueError(f"Classes {twice} are known already or named twice; a task brings new classes only.")
        if not class_names or num_prompts < 1:
            raise ValueError(f"A task needs at least 1 class and 1 prompt, got {len(class_names)} and {num_prompts}.")
        for level in self.task_levels().values():
            level.add_task(len(class_names), num_prompts)
        config = self.config
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
        for level in self.task_levels().values():
            level.remove_task()
        config = self.config
        names = list(config.id2label.values())[: -config.task_class_counts[-1]]
        config.task_class_counts = config.task_class_counts[:-1]
        config.task_prompt_counts = config.task_prompt_counts[:-1]
        self._set_classes(names)

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
        prefixes = tuple(
            f"{level}.{part}."
            for level in self.task_levels()
            for part in (f"task_queries.{task - 1}", f"class_predictor.heads.{task + 1}")
        )
        return {name: parameter for name, parameter in self.named_parameters() if name.startswith(prefixes)}

    def no_object_parameters(self) -> dict[str, nn.Parameter]:
        """The heads that every task trains further, by name."""
        prefixes = tuple(f"{level}.class_predictor.heads.0." for level in self.task_levels())
        return {name: parameter for name, parameter in self.named_parameters() if name.startswith(prefixes)}

    def _freeze(self) -> None:
        if self.num_tasks == 1:
            self.requires_grad_(True)
            super()._freeze()
            return
        self.requires_grad_(False)
        for parameter in {**self.task_parameters(self.num_tasks - 1), **self.no_object_parameters()}.values():
            parameter.requires_grad_(True)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.num_tasks > 1:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


__all__ = ["TaskLearningMixin", "check_tasks"]
