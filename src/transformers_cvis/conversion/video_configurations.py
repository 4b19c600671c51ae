"""Configurations of VITA and GenVIS read from the shapes of a released state dict."""

import torch

from ..modeling.genvis import GenVisConfig
from ..modeling.video_head.configuration_video import CvisVideoConfig
from ..modeling.vita import VitaConfig
from .released.mask2former import count, infer_frame_detector_config

CONFIGURATIONS: dict[str, type[CvisVideoConfig]] = {"vita": VitaConfig, "genvis": GenVisConfig}


def infer_video_config(state_dict: dict[str, torch.Tensor], system: str, **settings) -> CvisVideoConfig:
    """The configuration that a released VITA or GenVIS checkpoint was trained with.

    Args:
        state_dict: released names to tensors.
        system: "vita" or "genvis".
        settings: fields that shapes do not tell, for example `id2label`, `encoder_window_size` or `clip_length`.

    Raises:
        ValueError: for another system, or when the checkpoint has no video head.
    """
    if system not in CONFIGURATIONS:
        raise ValueError(f"No video configuration for system {system!r}; there are {sorted(CONFIGURATIONS)}.")
    if "vita_module.query_feat.weight" not in state_dict:
        raise ValueError(f"This checkpoint has no video head (`vita_module.*`), so it is no {system} checkpoint.")
    detector_config = infer_frame_detector_config(state_dict)
    num_classes_and_none = len(state_dict["vita_module.class_embed.weight"])
    found = {
        "detector_config": detector_config,
        "num_queries": len(state_dict["vita_module.query_feat.weight"]),
        "encoder_layers": count(state_dict, r"vita_module\.enc_self_attn\.(\d+)\."),
        "decoder_layers": count(state_dict, r"vita_module\.transformer_cross_attention_layers\.(\d+)\."),
        "dim_feedforward": len(state_dict["vita_module.transformer_ffn_layers.0.linear1.weight"]),
        "num_attention_heads": detector_config.num_attention_heads,
    }
    if "id2label" not in settings:
        found["num_labels"] = num_classes_and_none - 1
    return CONFIGURATIONS[system](**{**found, **settings})
