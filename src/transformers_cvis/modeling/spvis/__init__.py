# SPDX-License-Identifier: Apache-2.0
"""SPVIS: an online tracker that corrects its memory frame by frame, and an offline refiner of whole videos."""

from .configuration_spvis import SpvisConfig
from .modeling_spvis import SpvisForVideoInstanceSegmentation, SpvisState

__all__ = ["SpvisConfig", "SpvisForVideoInstanceSegmentation", "SpvisState"]
