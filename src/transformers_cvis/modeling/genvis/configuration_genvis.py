# SPDX-License-Identifier: Apache-2.0
"""Configuration of GenVIS."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from ...messages import check_at_least
from ..configuration_base import switch
from ..docstrings import document_config
from ..video_head.configuration_video import CvisVideoConfig


@document_config
@strict
class GenVisConfig(CvisVideoConfig):
    r"""Configuration of [`GenVisForVideoInstanceSegmentation`].

    Source: Heo et al., "A Generalized Framework for Video Instance Segmentation", CVPR 2023. The defaults are those of
    online GenVIS on YouTube-VIS with ResNet-50: the object encoder attends over all frames of a clip, and the detector
    is frozen.

    Args:
        clip_length (`int`, *optional*, defaults to `1`):
            Frames of one clip: 1 is online, more is semi-online. Training videos are cut into clips of this length; at
            inference clips may have any length.
        memory_size (`int`, *optional*):
            Clips that the memory holds; the oldest leaves first. None keeps all of them, as published. A bound keeps
            memory and time per clip constant on endless video.
        uvla (`"paper"` or `"released"`, *optional*, defaults to `"paper"`):
            Rule by which labels of newborn objects are assigned to queries. The paper's rule never gives away a query
            that once held an object. The released code frees the query of an object that is not visible in the current
            clip, after which two objects may share it; choose it to repeat published training.

    Example:
    ```python
    >>> from transformers_cvis import GenVisConfig

    >>> config = GenVisConfig(id2label={0: "person", 1: "dog"}, clip_length=3)
    >>> config.clip_length, config.freeze_detector
    (3, True)

    ```
    """

    model_type = "genvis"

    freeze_detector: bool = True
    clip_length: int = 1
    memory_size: int | None = None
    uvla: Literal["paper", "released"] | None = switch(
        "paper",
        paper="paper",
        released="released",
        reason="A query that once held an object is never given to another one.",
    )

    def validate_architecture(self) -> None:
        """Check, beyond the base class, the lengths of clips and memory."""
        super().validate_architecture()
        check_at_least("clip_length", self.clip_length, 1, "frame")
        if self.memory_size is not None:
            check_at_least("memory_size", self.memory_size, 1, "clip, or None for no bound")


__all__ = ["GenVisConfig"]
