# SPDX-License-Identifier: Apache-2.0
"""Configuration of a clip detector that learns task by task."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from ..clip_detector.configuration_clip_detector import ClipDetectorConfig
from ..configuration_base import switch
from ..docstrings import document_config
from ..tasks.learning import check_tasks


@document_config
@strict
class TaskClipDetectorConfig(ClipDetectorConfig):
    r"""Configuration of [`TaskClipDetectorForVideoInstanceSegmentation`], the clip detector that learns task by task.

    Args:
        num_prompts (`int` or `"classes"`, *optional*, defaults to `10`):
            Prompts of a new task unless `add_task` is given a number. "classes" is one for each of its classes, as in
            the algorithm of the CRISP paper; 0 is a model that learns by all its weights.
        calibration_deltas (`list[float]`, *optional*, defaults to `[0.5, 0.6]`):
            One number for each task, see `calibrate_class_logits`; cut to the number of tasks, or continued with the
            last number.

    Example:
    ```python
    >>> from transformers_cvis import TaskClipDetectorConfig

    >>> config = TaskClipDetectorConfig(id2label={0: "person", 1: "dog"})
    >>> config.task_class_counts
    [2]

    ```
    """

    model_type = "task_clip_detector"

    task_class_counts: list[int] | None = None
    task_prompt_counts: list[int] | None = None
    num_prompts: int | Literal["classes"] | None = switch(
        10, paper="classes", released=10, reason="A new task has 10 prompts, or one for each of its classes."
    )
    calibration_deltas: list[float | int] | None = None
    deep_class_head: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.task_prompt_counts is None:
            self.task_prompt_counts = []
        if self.calibration_deltas is None:
            self.calibration_deltas = [0.5, 0.6]

    def check_num_prompts(self, num_prompts: int) -> None:
        """Check that a new task can have a number of prompts; subclasses override it.

        Args:
            num_prompts: number of prompts of the task.

        Raises:
            ValueError: A new task cannot have as many prompts.
        """

    def share_labels(self) -> None:
        """Give all classes of `id2label` to the base, as long as it is the only task."""
        super().share_labels()
        if len(self.task_class_counts or [0]) == 1:
            self.task_class_counts = [self.num_labels]

    def validate_architecture(self) -> None:
        """Check the fields of the tasks, and those of the clip detector.

        Raises:
            ValueError: The counts of the tasks do not match the classes, or a field has an unsupported value.
        """
        super().validate_architecture()
        if self.task_class_counts is not None:
            check_tasks(self, fewest_prompts=0)
        if self.calibration_deltas is not None and not self.calibration_deltas:
            raise ValueError("`calibration_deltas` must hold at least one number, got []; 0 leaves logits unchanged.")
        if self.num_prompts != "classes" and self.num_prompts < 0:
            raise ValueError(f'`num_prompts` must be 0 or more, or "classes", got {self.num_prompts}.')


__all__ = ["TaskClipDetectorConfig"]
