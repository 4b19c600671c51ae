# SPDX-License-Identifier: Apache-2.0
"""Places of the parts of each task in a model that learns task by task.

Task 0 is the base, task t the t-th one after it. Every stage of a model (see `TaskLearningMixin.task_stages`) holds

    class_predictor.heads    the no-object head, which all tasks share, then the class head of task 0, 1, ...
    task_queries             the prompts and mask head of task 1, 2, ...; those of the base are the model's own queries
    class_tokens             the tokens of the class names of task 0, 1, ..., where the model reads class names

Only this module computes these indices.
"""

NO_OBJECT_HEAD = 0  # in `class_predictor.heads`


def class_head(task: int) -> int:
    """Return the index in `class_predictor.heads` of the class head of a task."""
    return task + 1


def query_group(task: int) -> int:
    """Return the index in `task_queries` of the prompts of a task from 1 on."""
    return task - 1


def parts_of_task(task: int) -> list[str]:
    """Return the paths, within a stage, of the parts that a task from 1 on adds; a stage may lack some of them."""
    return [f"task_queries.{query_group(task)}", f"class_predictor.heads.{class_head(task)}", f"class_tokens.{task}"]


def no_object_parts() -> list[str]:
    """Return the paths, within a stage, of the parts that all tasks share and train further."""
    return [f"class_predictor.heads.{NO_OBJECT_HEAD}"]
