# SPDX-License-Identifier: Apache-2.0
"""SPVIS: a tracker that corrects its memory frame by frame, online, and a refinement of whole videos, offline."""

from .configuration_spvis import SpvisConfig
from .modeling_spvis import SpvisForVideoInstanceSegmentation, SpvisState

__all__ = ["SpvisConfig", "SpvisForVideoInstanceSegmentation", "SpvisState"]
