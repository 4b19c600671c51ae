# SPDX-License-Identifier: Apache-2.0
"""VITA and GenVIS checkpoints: Mask2Former's names for the detector, and those of a video head."""

from collections.abc import Mapping
from typing import Any

import torch

from ...modeling.genvis import GenVisConfig, GenVisForVideoInstanceSegmentation
from ...modeling.vita import VitaConfig, VitaForVideoInstanceSegmentation
from ..rules import Conversion, Ignore, Rename, Rule, count_indices, packed_attention, prefixed
from .mask2former import frame_detector_rules, infer_frame_detector_config

# Short side of videos in pixels, as published for systems with a video head.
VIDEO_SHORT_SIDES = {"resnet": 360, "swin": 448}


# Names

_VITA_MODULE = "vita_module"
_OBJECT_ENCODER_ATTENTION = rf"{_VITA_MODULE}\.enc_self_attn\.(\d+)"
_OBJECT_ENCODER_FEED_FORWARD = rf"{_VITA_MODULE}\.enc_ffn\.(\d+)"
_VIDEO_CROSS_ATTENTION = rf"{_VITA_MODULE}\.transformer_cross_attention_layers\.(\d+)"
_VIDEO_SELF_ATTENTION = rf"{_VITA_MODULE}\.transformer_self_attention_layers\.(\d+)"
_VIDEO_FEED_FORWARD = rf"{_VITA_MODULE}\.transformer_ffn_layers\.(\d+)"
_OBJECT_ENCODER_LAYER = r"encoder.layers.\1"
_VIDEO_DECODER_LAYER = r"decoder.layers.\1"

VIDEO_HEAD: list[Rule] = [
    Rename(rf"{_VITA_MODULE}\.vita_mask_features\.(\w+)", r"mask_projection.\1"),
    Rename(rf"{_VITA_MODULE}\.input_proj_dec\.(\w+)", r"input_projection.\1"),
    *packed_attention(rf"{_OBJECT_ENCODER_ATTENTION}\.self_attn", rf"{_OBJECT_ENCODER_LAYER}.self_attn"),
    Rename(rf"{_OBJECT_ENCODER_ATTENTION}\.norm\.(\w+)", rf"{_OBJECT_ENCODER_LAYER}.self_attn_layer_norm.\2"),
    Rename(rf"{_OBJECT_ENCODER_FEED_FORWARD}\.linear([12])\.(\w+)", rf"{_OBJECT_ENCODER_LAYER}.feed_forward.fc\2.\3"),
    Rename(rf"{_OBJECT_ENCODER_FEED_FORWARD}\.norm\.(\w+)", rf"{_OBJECT_ENCODER_LAYER}.final_layer_norm.\2"),
    Rename(rf"{_VITA_MODULE}\.query_feat\.weight", "queries_features.weight"),
    Rename(rf"{_VITA_MODULE}\.query_embed\.weight", "queries_embedder.weight"),
    Rename(rf"{_VITA_MODULE}\.fq_pos\.weight", "frame_queries_embedder.weight"),
    *packed_attention(rf"{_VIDEO_CROSS_ATTENTION}\.multihead_attn", rf"{_VIDEO_DECODER_LAYER}.cross_attn"),
    Rename(rf"{_VIDEO_CROSS_ATTENTION}\.norm\.(\w+)", rf"{_VIDEO_DECODER_LAYER}.cross_attn_layer_norm.\2"),
    *packed_attention(rf"{_VIDEO_SELF_ATTENTION}\.self_attn", rf"{_VIDEO_DECODER_LAYER}.self_attn"),
    Rename(rf"{_VIDEO_SELF_ATTENTION}\.norm\.(\w+)", rf"{_VIDEO_DECODER_LAYER}.self_attn_layer_norm.\2"),
    Rename(rf"{_VIDEO_FEED_FORWARD}\.linear([12])\.(\w+)", rf"{_VIDEO_DECODER_LAYER}.feed_forward.fc\2.\3"),
    Rename(rf"{_VIDEO_FEED_FORWARD}\.norm\.(\w+)", rf"{_VIDEO_DECODER_LAYER}.final_layer_norm.\2"),
    Rename(rf"{_VITA_MODULE}\.decoder_norm\.(\w+)", r"decoder.layernorm.\1"),
    Rename(rf"{_VITA_MODULE}\.class_embed\.(\w+)", r"class_predictor.\1"),
    Rename(rf"{_VITA_MODULE}\.mask_embed\.layers\.(\d+)\.(\w+)", r"mask_embedder.\1.0.\2"),
    Rename(rf"{_VITA_MODULE}\.sim_embed_frame\.(\w+)", r"frame_similarity_projection.\1"),
    Rename(rf"{_VITA_MODULE}\.sim_embed_clip\.(\w+)", r"video_similarity_projection.\1"),
]

CLIP_MEMORY: list[Rule] = [
    Rename(rf"{_VITA_MODULE}\.pre_(memory|query)_embed_k\.(\w+)", r"memory_attention.\1_key_projection.\2"),
    Rename(rf"{_VITA_MODULE}\.pre_(memory|query)_embed_v\.(\w+)", r"memory_attention.\1_value_projection.\2"),
]


def vita_rules() -> list[Rule]:
    """Return the rules from VITA to `VitaForVideoInstanceSegmentation`."""
    return [
        *prefixed(frame_detector_rules(), "detector."),
        *prefixed(VIDEO_HEAD, "video_head."),
        Ignore(r"(vita|genvis)_criterion\.empty_weight", "class weights of the loss are configuration"),
    ]


def genvis_rules() -> list[Rule]:
    """Return the rules from GenVIS to `GenVisForVideoInstanceSegmentation`."""
    return [*vita_rules(), *prefixed(CLIP_MEMORY, "video_head.")]


# Configurations


def infer_vita_config(state_dict: Mapping[str, torch.Tensor], **settings: Any) -> VitaConfig:
    """Read the configuration of a VITA checkpoint from its shapes.

    Args:
        state_dict: released names to tensors.
        **settings: fields that take precedence, for example `id2label`, or `encoder_window_size`, which no shape shows.

    Returns:
        The configuration of VITA.

    Raises:
        ValueError: the checkpoint has no video head.
        KeyError: a tensor that shows a size is missing.
    """
    return VitaConfig(**_fields_of_video_model(state_dict, "VITA", settings))


def infer_genvis_config(state_dict: Mapping[str, torch.Tensor], **settings: Any) -> GenVisConfig:
    """Read the configuration of a GenVIS checkpoint from its shapes.

    Args:
        state_dict: released names to tensors.
        **settings: fields that take precedence, for example `id2label`, or `clip_length`, which no shape shows.

    Returns:
        The configuration of GenVIS.

    Raises:
        ValueError: the checkpoint has no video head.
        KeyError: a tensor that shows a size is missing.
    """
    return GenVisConfig(**_fields_of_video_model(state_dict, "GenVIS", settings))


def video_decoder_sizes(state_dict: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Read the sizes of the video decoder, which VITA, GenVIS and HVPL share.

    Args:
        state_dict: released names to tensors.

    Returns:
        Fields of a `CvisVideoConfig`.

    Raises:
        KeyError: a tensor that shows a size is missing.
    """
    return {
        "num_queries": len(state_dict["vita_module.query_feat.weight"]),
        "decoder_layers": count_indices(state_dict, r"vita_module\.transformer_cross_attention_layers\.(\d+)\."),
        "dim_feedforward": len(state_dict["vita_module.transformer_ffn_layers.0.linear1.weight"]),
    }


def _fields_of_video_model(
    state_dict: Mapping[str, torch.Tensor], name: str, settings: dict[str, Any]
) -> dict[str, Any]:
    if "vita_module.query_feat.weight" not in state_dict:
        raise ValueError(f"The checkpoint has no video head (`vita_module.*`), so it is not {name}.")
    detector_config = infer_frame_detector_config(state_dict)
    found = {
        "detector_config": detector_config,
        "num_attention_heads": detector_config.num_attention_heads,
        "encoder_layers": count_indices(state_dict, r"vita_module\.enc_self_attn\.(\d+)\."),
        **video_decoder_sizes(state_dict),
    }
    if "id2label" not in settings:
        found["num_labels"] = len(state_dict["vita_module.class_embed.weight"]) - 1  # without no-object
    return {**found, **settings}


# Entries

VITA = Conversion(
    rules=vita_rules,
    infer_config=infer_vita_config,
    model_class=VitaForVideoInstanceSegmentation,
    short_sides=VIDEO_SHORT_SIDES,
    assumed_fields=("encoder_window_size",),
)
GENVIS = Conversion(
    rules=genvis_rules,
    infer_config=infer_genvis_config,
    model_class=GenVisForVideoInstanceSegmentation,
    short_sides=VIDEO_SHORT_SIDES,
    assumed_fields=("clip_length",),
)
