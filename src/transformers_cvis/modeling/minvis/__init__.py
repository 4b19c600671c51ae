# SPDX-License-Identifier: Apache-2.0
"""MinVIS: a frame detector whose queries are matched from frame to frame, without training on video."""

from ..layers.query_matching import match_frame_queries
from .configuration_minvis import MinVisConfig
from .modeling_minvis import MinVisForVideoInstanceSegmentation, MinVisState

__all__ = ["MinVisConfig", "MinVisForVideoInstanceSegmentation", "MinVisState", "match_frame_queries"]
