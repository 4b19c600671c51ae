# SPDX-License-Identifier: Apache-2.0
"""VITA: video instance segmentation via object token association (Heo et al., NeurIPS 2022)."""

from ..video_head.modeling_video import WholeVideoModel
from .configuration_vita import VitaConfig


class VitaForVideoInstanceSegmentation(WholeVideoModel):
    """Segments a whole video at once: the detector sees its frames one by one, the head the queries of all of them."""

    config_class = VitaConfig
