"""Configurations of HVPL read from the shapes of a released state dict."""

import torch

from ..modeling.hvpl.configuration_hvpl import HvplConfig
from .released.mask2former import count, infer_frame_detector_config
from .released.tasks import class_head_sizes

# What released weights were trained and evaluated with; only the three together give their published numbers.
RELEASED = {"scan_axes": "released", "encoder_slices": "joint", "cross_tokens": "released"}


def infer_hvpl_config(state_dict: dict[str, torch.Tensor], **settings) -> HvplConfig:
    """The configuration of a released HVPL checkpoint after any of its tasks, with the released switches.

    Args:
        state_dict: released names to tensors.
        settings: fields that shapes do not tell, for example `id2label` or `calibration_deltas`.

    Raises:
        ValueError: when the checkpoint has no class heads of tasks.
    """
    prompts = "vita_module.prompt_feat"
    class_counts, deep = class_head_sizes(state_dict, "vita_module")
    if not class_counts:
        raise ValueError("This checkpoint has no class heads of tasks (`vita_module.class_embed.cls.*`): no HVPL.")
    id2label = settings.pop("id2label", {index: f"LABEL_{index}" for index in range(sum(class_counts))})
    detector_config = infer_frame_detector_config(state_dict, id2label=id2label)
    found = {
        "id2label": id2label,
        "detector_config": detector_config,
        "num_queries": len(state_dict["vita_module.query_feat.weight"]),
        "encoder_layers": count(state_dict, r"vita_module\.enc_mamba\.(\d+)\."),
        "decoder_layers": count(state_dict, r"vita_module\.transformer_cross_attention_layers\.(\d+)\."),
        "dim_feedforward": len(state_dict["vita_module.transformer_ffn_layers.0.linear1.weight"]),
        "num_attention_heads": detector_config.num_attention_heads,
        "task_class_counts": class_counts,
        "task_prompt_counts": [len(state_dict[f"{prompts}.{task}.weight"]) for task in range(len(class_counts) - 1)],
        "deep_class_head": deep,
    }
    return HvplConfig(**{**found, **RELEASED, **settings})
