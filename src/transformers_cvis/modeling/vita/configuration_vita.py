# SPDX-License-Identifier: Apache-2.0
"""Configuration of VITA."""

from huggingface_hub.dataclasses import strict

from ..docstrings import document_config
from ..video_head.configuration_video import CvisVideoConfig


@document_config
@strict
class VitaConfig(CvisVideoConfig):
    r"""Configuration of [`VitaForVideoInstanceSegmentation`].

    Source: Heo et al., "VITA: Video Instance Segmentation via Object Token Association", NeurIPS 2022. The defaults are
    those of VITA on YouTube-VIS with ResNet-50: the object encoder attends in windows of 6 frames, and the detector
    trains.

    Example:
    ```python
    >>> from transformers_cvis import VitaConfig

    >>> config = VitaConfig(id2label={0: "person", 1: "dog"})
    >>> config.num_labels
    2

    ```
    """

    model_type = "vita"

    encoder_window_size: int = 6


__all__ = ["VitaConfig"]
