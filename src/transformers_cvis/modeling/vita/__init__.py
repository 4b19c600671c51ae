# SPDX-License-Identifier: Apache-2.0
"""VITA: segmentation of a whole video at once, with objects associated through the frame queries of all frames."""

from .configuration_vita import VitaConfig
from .modeling_vita import VitaForVideoInstanceSegmentation

__all__ = ["VitaConfig", "VitaForVideoInstanceSegmentation"]
