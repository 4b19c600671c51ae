"""Released Detectron2-style checkpoints to configurations and safetensors."""

from . import crisp_names, hvpl_names, mask2former_vis_names, spvis_names, video_names  # noqa: F401  register the tables of their systems
from .checkpoints import convert_checkpoint, read_checkpoint
from .convert import ConversionReport, convert_state_dict

__all__ = ["ConversionReport", "convert_checkpoint", "convert_state_dict", "read_checkpoint"]
