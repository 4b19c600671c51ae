# SPDX-License-Identifier: Apache-2.0
"""CRISP: prompts of later tasks that class names shape, on queries that read a whole video."""

from .configuration_crisp import CrispConfig
from .modeling_crisp import CrispForVideoInstanceSegmentation
from .text_encoder import ClassTextEncoder

__all__ = ["ClassTextEncoder", "CrispConfig", "CrispForVideoInstanceSegmentation"]
