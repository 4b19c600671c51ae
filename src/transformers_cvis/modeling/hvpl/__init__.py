# SPDX-License-Identifier: Apache-2.0
"""HVPL: hierarchical visual prompt learning for continual video instance segmentation."""

from .configuration_hvpl import HvplConfig
from .context_encoder import ContextEncoder, ContextEncoderLayer, TreeStateSpace
from .modeling_hvpl import HvplForVideoInstanceSegmentation

__all__ = [
    "ContextEncoder",
    "ContextEncoderLayer",
    "HvplConfig",
    "HvplForVideoInstanceSegmentation",
    "TreeStateSpace",
]
