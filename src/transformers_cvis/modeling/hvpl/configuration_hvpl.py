# SPDX-License-Identifier: Apache-2.0
"""Configuration of HVPL."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from ..configuration_base import switch
from ..docstrings import document_config
from ..tasks.learning import check_tasks
from ..video_head.configuration_video import CvisVideoConfig


@document_config
@strict
class HvplConfig(CvisVideoConfig):
    r"""Configuration of [`HvplForVideoInstanceSegmentation`].

    Source: Dong et al., "HVPL: Hierarchical Visual Prompt Learning for Continual Video Instance Segmentation",
    arXiv:2508.08612. Released weights need `behaviour="released"`, with which their numbers were made.

    Args:
        calibration_deltas (`list[float]`, *optional*, defaults to `[0.0]`):
            One number for each task, see `calibrate_class_logits`; cut to the number of tasks, or continued with the
            last number. The default leaves no-object as it is. Published scenarios have values of their own, from
            `[0.4, 0.5]` to `[0.5, -0.4]`, which the schedules of this package hold.
        encoder (`"tree"` or `"attention"`, *optional*, defaults to `"tree"`):
            Encoder of frame queries: along trees, or VITA's object encoder, which the released code has but never runs.
        classification_loss (`"ce"` or `"focal"`, *optional*, defaults to `"ce"`):
            Classification loss of frame queries and video queries: cross entropy of a softmax, or focal loss of
            sigmoids, see `sigmoid_focal_losses`. Released code inverts its flag for the focal loss: its scripts set the
            flag, ask for "focal", and train with "ce".
        drop_path_rate (`float`, *optional*, defaults to `0.2`):
            Stochastic depth of the last layer of the context encoder; it rises from 0 in the first.
        freeze_drop_path (`bool`, *optional*, defaults to `False`):
            Switch stochastic depth off while a later task is learnt, since the encoder is then frozen. The released
            code does not.
        scan_axes (`"frames_queries"` or `"released"`, *optional*, defaults to `"frames_queries"`):
            Axes along which trees are scanned, see `ContextEncoder`. "released" passes no information between frames.
        encoder_slices (`"per_task"` or `"joint"`, *optional*, defaults to `"per_task"`):
            Queries that the context encoder reads together, see `ContextEncoder`. "joint" mixes the tasks, so that a
            new one changes the results of older ones.
        cross_tokens (`"per_task"` or `"released"`, *optional*, defaults to `"per_task"`):
            Frame queries that the video queries of a task read at inference: those of the task in all frames, as in
            training; or, with later tasks, those of the first frame alone, with positions of the base, since the
            released code counts tokens as if a video had one frame.

    Example:
    ```python
    >>> from transformers_cvis import HvplConfig

    >>> config = HvplConfig(id2label={0: "person", 1: "dog"}, behaviour="released")
    >>> config.scan_axes, config.task_class_counts
    ('released', [2])

    ```
    """

    model_type = "hvpl"

    task_class_counts: list[int] | None = None
    task_prompt_counts: list[int] | None = None
    calibration_deltas: list[float | int] | None = None
    deep_class_head: bool = True
    encoder: Literal["tree", "attention"] = "tree"
    classification_loss: Literal["ce", "focal"] = "ce"
    drop_path_rate: float | int = 0.2
    freeze_drop_path: bool = False
    scan_axes: Literal["frames_queries", "released"] | None = switch(
        "frames_queries",
        paper="frames_queries",
        released="released",
        reason="Trees pass information between frames; the released scan passes none.",
    )
    encoder_slices: Literal["per_task", "joint"] | None = switch(
        "per_task",
        paper="per_task",
        released="joint",
        reason="The context encoder reads each task by itself, so that a new task changes no older one.",
    )
    cross_tokens: Literal["per_task", "released"] | None = switch(
        "per_task",
        paper="per_task",
        released="released",
        reason="Video queries read the frame queries of all frames; released inference reads the first frame.",
    )

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.task_prompt_counts is None:
            self.task_prompt_counts = []
        if self.calibration_deltas is None:
            self.calibration_deltas = [0.0]

    def share_labels(self) -> None:
        """Pass the classes on to the detector, and all of them to the base while it is the only task."""
        super().share_labels()
        if len(self.task_class_counts or [0]) == 1:
            self.task_class_counts = [self.num_labels]

    def validate_architecture(self) -> None:
        """Check, beyond the base class, the tasks, their calibration, and the switches of the encoder."""
        super().validate_architecture()
        if self.task_class_counts is not None:
            check_tasks(self)
        if self.calibration_deltas is not None and not self.calibration_deltas:
            raise ValueError("`calibration_deltas` must hold at least 1 number, got []; 0 leaves logits as they are.")
        if self.encoder == "attention" and self.encoder_slices != "per_task":
            raise ValueError(
                '`encoder_slices="joint"` needs `encoder="tree"`, got "attention": use the tree encoder or "per_task".'
            )


__all__ = ["HvplConfig"]
