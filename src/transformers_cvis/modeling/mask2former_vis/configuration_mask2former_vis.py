# SPDX-License-Identifier: Apache-2.0
"""Configuration of Mask2Former-VIS."""

from huggingface_hub.dataclasses import strict

from ..clip_detector.configuration_clip_detector import ClipDetectorConfig
from ..docstrings import document_config


@document_config
@strict
class Mask2FormerVisConfig(ClipDetectorConfig):
    r"""Configuration of [`Mask2FormerVisForVideoInstanceSegmentation`].

    Source: Cheng et al., "Mask2Former for Video Instance Segmentation", arXiv:2112.10764.

    Example:
    ```python
    >>> from transformers_cvis import Mask2FormerVisConfig

    >>> config = Mask2FormerVisConfig(id2label={0: "person", 1: "dog"})
    >>> config.num_labels, config.max_clip_frames
    (2, 128)

    ```
    """

    model_type = "mask2former_vis"


__all__ = ["Mask2FormerVisConfig"]
