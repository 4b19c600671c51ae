# SPDX-License-Identifier: Apache-2.0
"""Names that HVPL and CRISP share, which learn task by task: a checkpoint holds all tasks so far.

Both have prompts and class heads in the frame decoder (`sem_seg_head.predictor`), HVPL also in the video head
(`vita_module`). Task 0 is the base.
"""

import re
from collections.abc import Iterable, Mapping

import torch

from ..rules import Rename, Rule, count_indices

_STAGE = r"(?:sem_seg_head\.predictor|vita_module)"
# Head 0 predicts no-object for all tasks, and head t + 1 the classes of task t.
_TASK_CLASS_HEAD = re.compile(rf"{_STAGE}\.class_embed\.cls\.(\d+)\..+")
# Pattern whose first group is an index -> the task of index 0.
_FIRST_TASKS = {
    re.compile(rf"{_STAGE}\.prompt_\w+\.(\d+)\..+"): 1,
    re.compile(rf"{_STAGE}\.sem_prompter\.learnable_prompts\.(\d+)\..+"): 0,
    _TASK_CLASS_HEAD: -1,
}


def task_query_rules(source: str) -> list[Rule]:
    """Return the rules for the prompts of later tasks and for all class heads.

    Args:
        source: regular expression for the start of the released names: the frame decoder or the video head.
    """
    decoder_layers = rf"{source}\.transformer_cross_attention_layers\.(\d+)\."
    return [
        Rename(rf"{source}\.prompt_feat\.(\d+)\.weight", r"task_queries.\1.features.weight"),
        Rename(rf"{source}\.prompt_embed\.(\d+)\.(\d+)\.weight", r"task_queries.\1.positions.\2.weight"),
        # without PROMPT_DEEP all layers share one
        Rename(rf"{source}\.prompt_embed\.(\d+)\.weight", r"task_queries.\1.positions.*.weight", copies=decoder_layers),
        Rename(rf"{source}\.prompt_fq_pos\.(\d+)\.weight", r"task_queries.\1.token_positions.weight"),
        Rename(rf"{source}\.prompt_mask_embed\.(\d+)\.layers\.(\d+)\.(\w+)", r"task_queries.\1.mask_embedder.\2.0.\3"),
        Rename(rf"{source}\.class_embed\.cls\.(\d+)\.layers\.(\d+)\.(\w+)", r"class_predictor.heads.\1.\2.0.\3"),
        Rename(rf"{source}\.class_embed\.cls\.(\d+)\.(weight|bias)", r"class_predictor.heads.\1.\2"),
    ]


def count_tasks(names: Iterable[str]) -> int:
    """Count the tasks of a checkpoint.

    Args:
        names: released names.

    Returns:
        The number of tasks, the base included; 0 for a model that does not learn task by task.
    """
    return max((int(match[1]) for name in names if (match := _TASK_CLASS_HEAD.fullmatch(name))), default=0)


def task_of(name: str) -> int:
    """Return the task that added a tensor, by its released name; 0 for all that belongs to no later task."""
    for pattern, first_task in _FIRST_TASKS.items():
        if match := pattern.fullmatch(name):
            return max(first_task + int(match[1]), 0)
    return 0


def class_head_sizes(state_dict: Mapping[str, torch.Tensor], source: str) -> tuple[list[int], bool]:
    """Read the class heads of all tasks.

    Args:
        state_dict: released names to tensors.
        source: start of the released names: "sem_seg_head.predictor" or "vita_module".

    Returns:
        The number of classes of each task, empty for a model that does not learn task by task; and whether the heads
        have three layers instead of one.

    Raises:
        KeyError: a head is missing.
    """
    heads = f"{source}.class_embed.cls"
    num_heads = count_indices(state_dict, rf"{re.escape(heads)}\.(\d+)\.")
    deep = f"{heads}.0.layers.2.weight" in state_dict
    output = "layers.2.weight" if deep else "weight"
    return [len(state_dict[f"{heads}.{head}.{output}"]) for head in range(1, num_heads)], deep


def default_labels(num_classes: int) -> dict[int, str]:
    """Return the labels that transformers gives to classes without names: LABEL_0, LABEL_1, ..."""
    return {index: f"LABEL_{index}" for index in range(num_classes)}
