"""Released checkpoints of models that learn task by task (HVPL, CRISP): a checkpoint holds all tasks so far."""

import re
from collections.abc import Iterable

import torch

from .mask2former import count

LEVEL = r"(?:sem_seg_head\.predictor|vita_module)"
# Task 0 is the base. `class_embed.cls.0` is the no-object head, which all tasks share.
CLASS_HEAD = re.compile(rf"{LEVEL}\.class_embed\.cls\.(\d+)\..+")
FIRST_TASKS = {
    re.compile(rf"{LEVEL}\.prompt_\w+\.(\d+)\..+"): 1,
    re.compile(rf"{LEVEL}\.sem_prompter\.learnable_prompts\.(\d+)\..+"): 0,
    CLASS_HEAD: -1,
}


def count_tasks(names: Iterable[str]) -> int:
    """Tasks that a checkpoint holds, the base included; 0 where the model does not learn by tasks."""
    return max((int(match[1]) for name in names if (match := CLASS_HEAD.fullmatch(name))), default=0)


def task_of(name: str) -> int:
    """The task that brought the tensor of this released name; 0 for all that belongs to no later task."""
    for pattern, first_task in FIRST_TASKS.items():
        if match := pattern.fullmatch(name):
            return max(first_task + int(match[1]), 0)
    return 0


def class_head_sizes(state_dict: dict[str, torch.Tensor], level: str) -> tuple[list[int], bool]:
    """Classes of each task by its head at a level, such as "vita_module", and whether heads have three layers.

    No classes where there are no heads of tasks.
    """
    heads = f"{level}.class_embed.cls"
    num_heads = count(state_dict, rf"{re.escape(heads)}\.(\d+)\.")
    deep = f"{heads}.0.layers.2.weight" in state_dict
    output = "layers.2.weight" if deep else "weight"
    return [len(state_dict[f"{heads}.{head}.{output}"]) for head in range(1, num_heads)], deep
