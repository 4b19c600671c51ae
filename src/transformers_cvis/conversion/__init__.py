"""Released Detectron2-style checkpoints to configurations and safetensors."""

from . import hvpl_names, video_names  # noqa: F401  register the tables of HVPL, VITA and GenVIS
from .checkpoints import convert_checkpoint, read_checkpoint
from .convert import ConversionReport, convert_state_dict

__all__ = ["ConversionReport", "convert_checkpoint", "convert_state_dict", "read_checkpoint"]
