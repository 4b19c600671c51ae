# SPDX-License-Identifier: Apache-2.0
"""CRISP: a clip detector that learns task by task, with prompts shaped by class names."""

from .configuration_crisp import CrispConfig
from .modeling_crisp import CrispForVideoInstanceSegmentation
from .text_encoder import ClassTextEncoder

__all__ = ["ClassTextEncoder", "CrispConfig", "CrispForVideoInstanceSegmentation"]
