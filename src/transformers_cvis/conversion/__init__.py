"""Released Detectron2-style checkpoints to configurations and safetensors."""

from . import video_names  # noqa: F401  registers the tables of VITA and GenVIS
from .checkpoints import convert_checkpoint, read_checkpoint
from .convert import ConversionReport, convert_state_dict

__all__ = ["ConversionReport", "convert_checkpoint", "convert_state_dict", "read_checkpoint"]
