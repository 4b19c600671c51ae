# SPDX-License-Identifier: Apache-2.0
"""GenVIS: online or semi-online segmentation, clip by clip, with a memory of past clips."""

from .configuration_genvis import GenVisConfig
from .modeling_genvis import GenVisForVideoInstanceSegmentation, GenVisState

__all__ = ["GenVisConfig", "GenVisForVideoInstanceSegmentation", "GenVisState"]
