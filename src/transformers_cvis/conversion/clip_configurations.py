"""Configurations of Mask2Former-VIS and CRISP read from the shapes of a released state dict."""

import torch

from ..modeling.crisp import CrispConfig
from ..modeling.mask2former_vis import Mask2FormerVisConfig
from .released.mask2former import infer_frame_detector_config
from .released.tasks import class_head_sizes


def infer_mask2former_vis_config(state_dict: dict[str, torch.Tensor], **settings) -> Mask2FormerVisConfig:
    """The configuration of a Mask2Former-VIS checkpoint, which is that of its frame detector.

    Args:
        state_dict: released names to tensors.
        settings: fields that shapes do not tell, for example `id2label`.

    Raises:
        ValueError: when a tensor that a size is read from is missing.
    """
    return Mask2FormerVisConfig.from_frame_detector(infer_frame_detector_config(state_dict), **settings)


def infer_crisp_config(state_dict: dict[str, torch.Tensor], **settings) -> CrispConfig:
    """The configuration of a released CRISP checkpoint after any of its tasks.

    Args:
        state_dict: released names to tensors.
        settings: fields that shapes do not tell, for example `id2label` or `calibration_deltas`.

    Raises:
        ValueError: when the checkpoint has no class heads of tasks, or a tensor that a size is read from is missing.
    """
    predictor = "sem_seg_head.predictor"
    tokens = f"{predictor}.sem_prompter.learnable_prompts.0.weight"
    class_counts, deep = class_head_sizes(state_dict, predictor)
    if not class_counts:
        raise ValueError(f"This checkpoint has no class heads of tasks (`{predictor}.class_embed.cls.*`): no CRISP.")
    prompts = [f"{predictor}.prompt_feat.{task}.weight" for task in range(len(class_counts) - 1)]
    found = {
        "task_class_counts": class_counts,
        "task_prompt_counts": [len(state_dict[name]) if name in state_dict else 0 for name in prompts],
        "deep_class_head": deep,
    }
    if tokens in state_dict:
        found["text_hidden_size"] = state_dict[tokens].shape[1]
    else:
        found |= {"residual_prompts": False, "lambda_isc": 0.0}
    id2label = settings.pop("id2label", {index: f"LABEL_{index}" for index in range(sum(class_counts))})
    detector_config = infer_frame_detector_config(state_dict, id2label=id2label)
    return CrispConfig.from_frame_detector(detector_config, **{**found, **settings})
