"""Released Detectron2-style checkpoints to configurations and safetensors."""

from . import video_names  # noqa: F401  registers the tables of VITA and GenVIS
from .convert import ConversionReport, convert_state_dict

__all__ = ["ConversionReport", "convert_state_dict"]
