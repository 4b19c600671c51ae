"""Released Detectron2-style checkpoints to configurations and safetensors."""

from .checkpoints import ConversionError, convert_checkpoint
from .convert import ConversionReport, convert_state_dict
from .gradient_basis import read_gradient_basis
from .reading import ReleasedCheckpoint, read_checkpoint
from .systems import SYSTEMS, System

__all__ = [
    "SYSTEMS",
    "ConversionError",
    "ConversionReport",
    "ReleasedCheckpoint",
    "System",
    "convert_checkpoint",
    "convert_state_dict",
    "read_checkpoint",
    "read_gradient_basis",
]
