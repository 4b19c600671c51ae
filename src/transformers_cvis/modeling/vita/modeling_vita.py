# SPDX-License-Identifier: Apache-2.0
"""VITA: video instance segmentation via object token association (Heo et al., NeurIPS 2022)."""

from ..video_head.modeling_video import WholeVideoModel
from .configuration_vita import VitaConfig


class VitaForVideoInstanceSegmentation(WholeVideoModel):
    """VITA, which segments a whole video at once: the detector reads single frames, the head the queries of all."""

    config_class = VitaConfig
