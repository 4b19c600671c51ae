# SPDX-License-Identifier: Apache-2.0
"""Configuration of MinVIS."""

from huggingface_hub.dataclasses import strict

from ..configuration_base import VideoConfigMixin
from ..docstrings import document_config
from ..frame_detector.configuration_frame_detector import FrameDetectorConfig


@document_config
@strict
class MinVisConfig(VideoConfigMixin, FrameDetectorConfig):
    r"""Configuration of [`MinVisForVideoInstanceSegmentation`].

    Source: Huang et al., "MinVIS: A Minimal Video Instance Segmentation Framework without Video-based Training",
    NeurIPS 2022. The configuration extends that of the frame detector, so that the `config.json` of a Mask2Former
    checkpoint loads as it is.

    Example:
    ```python
    >>> from transformers_cvis import MinVisConfig

    >>> config = MinVisConfig(id2label={0: "person", 1: "dog"})
    >>> config.num_labels
    2

    ```
    """

    model_type = "minvis"


__all__ = ["MinVisConfig"]
