"""Released Detectron2-style checkpoints to configurations and safetensors."""

from .convert import ConversionReport, convert_state_dict

__all__ = ["ConversionReport", "convert_state_dict"]
