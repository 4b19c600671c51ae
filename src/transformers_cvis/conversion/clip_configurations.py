"""Configurations of Mask2Former-VIS read from the shapes of a released state dict."""

import torch

from ..modeling.mask2former_vis import Mask2FormerVisConfig
from .configurations import infer_frame_detector_config


def infer_mask2former_vis_config(state_dict: dict[str, torch.Tensor], **settings) -> Mask2FormerVisConfig:
    """The configuration of a Mask2Former-VIS checkpoint, which is that of its frame detector.

    Args:
        state_dict: released names to tensors.
        settings: fields that shapes do not tell, for example `id2label`.

    Raises:
        ValueError: when a tensor that a size is read from is missing.
    """
    return Mask2FormerVisConfig.from_frame_detector(infer_frame_detector_config(state_dict), **settings)
