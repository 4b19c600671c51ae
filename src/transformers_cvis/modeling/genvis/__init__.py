# SPDX-License-Identifier: Apache-2.0
"""GenVIS: clip by clip, online or semi-online, with a memory of past clips."""

from .configuration_genvis import GenVisConfig
from .modeling_genvis import GenVisForVideoInstanceSegmentation, GenVisState

__all__ = ["GenVisConfig", "GenVisForVideoInstanceSegmentation", "GenVisState"]
