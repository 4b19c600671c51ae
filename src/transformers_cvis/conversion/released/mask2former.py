# SPDX-License-Identifier: Apache-2.0
"""Mask2Former checkpoints, and those of systems with the same names: Mask2Former-VIS and MinVIS."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cache
from typing import Any, cast

import torch
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedConfig,
    ResNetConfig,
    SwinBackbone,
    SwinConfig,
)

from ...modeling.frame_detector import FrameDetectorConfig
from ...modeling.frame_detector.pixel_decoder import NUM_LEVELS, NUM_POINTS
from ...modeling.mask2former_vis import Mask2FormerVisConfig, Mask2FormerVisForVideoInstanceSegmentation
from ...modeling.minvis import MinVisConfig, MinVisForVideoInstanceSegmentation
from ..rules import Conversion, Ignore, Rename, Rule, count_indices, packed_attention, prefixed

# Short side of videos in pixels, as published for systems that detect and track objects in frames.
FRAME_SHORT_SIDES = {"resnet": 360, "swin": 480}

_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_IMAGENET_CLASSIFIER = "part of the ImageNet classifier"


# Names


def current_names(names: Iterable[str]) -> dict[str, str]:
    """Map the names of old checkpoints, and of backbones alone, to the names of newer checkpoints.

    Old Mask2Former checkpoints contain neither `pixel_decoder` nor `query_feat` in their names. Backbones that were
    trained on ImageNet lack the prefix `backbone`.

    Args:
        names: all names of a checkpoint.

    Returns:
        Each name -> the name that the rules expect; most names stay as they are.
    """
    names = list(names)
    backbone_alone = not {"stem.conv1.weight", "patch_embed.proj.weight"}.isdisjoint(names)
    old = not any(name.startswith("sem_seg_head.pixel_decoder.") for name in names)
    renamed = {}
    for name in names:
        current = f"backbone.{name}" if backbone_alone else name
        if old and name.startswith("sem_seg_head.") and not name.startswith("sem_seg_head.predictor."):
            current = name.replace("sem_seg_head.", "sem_seg_head.pixel_decoder.", 1)
        renamed[name] = current.replace("predictor.static_query.", "predictor.query_feat.")
    return renamed


RESNET_BACKBONE: list[Rule] = [
    Rename(r"backbone\.stem\.conv1\.weight", r"embedder.embedder.convolution.weight"),
    Rename(r"backbone\.stem\.conv1\.norm\.(\w+)", r"embedder.embedder.normalization.\1"),
    *(
        rule
        for stage in range(4)
        for rule in (
            Rename(
                rf"backbone\.res{stage + 2}\.(\d+)\.shortcut\.weight",
                rf"encoder.stages.{stage}.layers.\1.shortcut.convolution.weight",
            ),
            Rename(
                rf"backbone\.res{stage + 2}\.(\d+)\.shortcut\.norm\.(\w+)",
                rf"encoder.stages.{stage}.layers.\1.shortcut.normalization.\2",
            ),
            *(
                Rename(
                    rf"backbone\.res{stage + 2}\.(\d+)\.conv{convolution + 1}\.{source}",
                    rf"encoder.stages.{stage}.layers.\1.layer.{convolution}.{target}",
                )
                for convolution in range(3)
                for source, target in (("weight", "convolution.weight"), (r"norm\.(\w+)", r"normalization.\2"))
            ),
        )
    ),
    Ignore(r"backbone\.stem\.fc\..*", _IMAGENET_CLASSIFIER),
]


@cache
def swin_backbone_rules() -> list[Rule]:
    """Return the rules of Swin for the installed transformers, whose version 5 renamed most of its weights."""
    probe = SwinBackbone(SwinConfig(embed_dim=4, depths=[1], num_heads=[1], image_size=8, window_size=2))
    names = set(dict(probe.named_parameters()))
    root = "swin." if any(name.startswith("swin.") for name in names) else ""
    block = rf"{root}encoder.layers.\1.blocks.\2"
    source = r"backbone\.layers\.(\d+)\.blocks\.(\d+)"
    if any("attention.q_proj" in name for name in names):
        attention = f"{block}.attention"
        queries_keys_values = tuple(f"{attention}.{part}_proj" for part in "qkv")
        output, first, second = f"{attention}.o_proj", f"{block}.mlp.fc1", f"{block}.mlp.fc2"
        bias_table = f"{attention}.relative_position_bias.relative_position_bias_table"
    else:
        attention = f"{block}.attention.self"
        queries_keys_values = tuple(f"{attention}.{part}" for part in ("query", "key", "value"))
        output = f"{block}.attention.output.dense"
        first, second = f"{block}.intermediate.dense", f"{block}.output.dense"
        bias_table = f"{attention}.relative_position_bias_table"
    return [
        Rename(r"backbone\.patch_embed\.proj\.(\w+)", rf"{root}embeddings.patch_embeddings.projection.\1"),
        Rename(r"backbone\.patch_embed\.norm\.(\w+)", rf"{root}embeddings.norm.\1"),
        Rename(rf"{source}\.norm1\.(\w+)", rf"{block}.layernorm_before.\3"),
        Rename(rf"{source}\.norm2\.(\w+)", rf"{block}.layernorm_after.\3"),
        Rename(rf"{source}\.attn\.qkv\.(\w+)", tuple(rf"{part}.\3" for part in queries_keys_values)),
        Rename(rf"{source}\.attn\.proj\.(\w+)", rf"{output}.\3"),
        Rename(rf"{source}\.attn\.relative_position_bias_table", bias_table),
        Ignore(rf"{source}\.attn\.relative_position_index", "computed from the window size"),
        Rename(rf"{source}\.mlp\.fc1\.(\w+)", rf"{first}.\3"),
        Rename(rf"{source}\.mlp\.fc2\.(\w+)", rf"{second}.\3"),
        Rename(
            r"backbone\.layers\.(\d+)\.downsample\.(norm|reduction)\.(\w+)",
            rf"{root}encoder.layers.\1.downsample.\2.\3",
        ),
        *(Rename(rf"backbone\.norm{stage}\.(\w+)", rf"hidden_states_norms.stage{stage + 1}.\1") for stage in range(4)),
        Ignore(r"backbone\..*\.attn_mask", "computed from the input size"),
        Ignore(r"backbone\.(norm|head)\..*", _IMAGENET_CLASSIFIER),
    ]


_RELEASED_PIXEL_DECODER = r"sem_seg_head\.pixel_decoder"
_PIXEL_ENCODER_LAYER = rf"{_RELEASED_PIXEL_DECODER}\.transformer\.encoder\.layers\.(\d+)"

PIXEL_DECODER: list[Rule] = [
    Rename(rf"{_RELEASED_PIXEL_DECODER}\.input_proj\.(\d+)\.([01])\.(\w+)", r"input_projections.\1.\2.\3"),
    Rename(rf"{_RELEASED_PIXEL_DECODER}\.transformer\.level_embed", "level_embed"),
    Rename(rf"{_PIXEL_ENCODER_LAYER}\.self_attn\.(\w+)\.(\w+)", r"encoder.layers.\1.self_attn.\2.\3"),
    Rename(rf"{_PIXEL_ENCODER_LAYER}\.norm1\.(\w+)", r"encoder.layers.\1.self_attn_layer_norm.\2"),
    Rename(rf"{_PIXEL_ENCODER_LAYER}\.linear1\.(\w+)", r"encoder.layers.\1.fc1.\2"),
    Rename(rf"{_PIXEL_ENCODER_LAYER}\.linear2\.(\w+)", r"encoder.layers.\1.fc2.\2"),
    Rename(rf"{_PIXEL_ENCODER_LAYER}\.norm2\.(\w+)", r"encoder.layers.\1.final_layer_norm.\2"),
    Rename(rf"{_RELEASED_PIXEL_DECODER}\.(adapter_1|layer_1)\.weight", r"\1.0.weight"),
    Rename(rf"{_RELEASED_PIXEL_DECODER}\.(adapter_1|layer_1)\.norm\.(\w+)", r"\1.1.\2"),
    Rename(rf"{_RELEASED_PIXEL_DECODER}\.mask_features\.(\w+)", r"mask_projection.\1"),
]

_FRAME_PREDICTOR = r"sem_seg_head\.predictor"
_FRAME_CROSS_ATTENTION = rf"{_FRAME_PREDICTOR}\.transformer_cross_attention_layers\.(\d+)"
_FRAME_SELF_ATTENTION = rf"{_FRAME_PREDICTOR}\.transformer_self_attention_layers\.(\d+)"
_FRAME_FEED_FORWARD = rf"{_FRAME_PREDICTOR}\.transformer_ffn_layers\.(\d+)"
_FRAME_DECODER_LAYER = r"decoder.layers.\1"

FRAME_DECODER: list[Rule] = [
    Rename(rf"{_FRAME_PREDICTOR}\.query_feat\.weight", "queries_features.weight"),
    Rename(rf"{_FRAME_PREDICTOR}\.query_embed\.weight", "queries_embedder.weight"),
    Rename(rf"{_FRAME_PREDICTOR}\.level_embed\.weight", "level_embed.weight"),
    Rename(rf"{_FRAME_PREDICTOR}\.input_proj\.(\d+)\.(\w+)", r"input_projections.\1.\2"),
    Rename(rf"{_FRAME_CROSS_ATTENTION}\.multihead_attn\.(.+)", rf"{_FRAME_DECODER_LAYER}.cross_attn.\2"),
    Rename(rf"{_FRAME_CROSS_ATTENTION}\.norm\.(\w+)", rf"{_FRAME_DECODER_LAYER}.cross_attn_layer_norm.\2"),
    *packed_attention(rf"{_FRAME_SELF_ATTENTION}\.self_attn", rf"{_FRAME_DECODER_LAYER}.self_attn"),
    Rename(rf"{_FRAME_SELF_ATTENTION}\.norm\.(\w+)", rf"{_FRAME_DECODER_LAYER}.self_attn_layer_norm.\2"),
    Rename(rf"{_FRAME_FEED_FORWARD}\.linear1\.(\w+)", rf"{_FRAME_DECODER_LAYER}.fc1.\2"),
    Rename(rf"{_FRAME_FEED_FORWARD}\.linear2\.(\w+)", rf"{_FRAME_DECODER_LAYER}.fc2.\2"),
    Rename(rf"{_FRAME_FEED_FORWARD}\.norm\.(\w+)", rf"{_FRAME_DECODER_LAYER}.final_layer_norm.\2"),
    Rename(rf"{_FRAME_PREDICTOR}\.decoder_norm\.(\w+)", r"decoder.layernorm.\1"),
    Rename(rf"{_FRAME_PREDICTOR}\.mask_embed\.layers\.(\d+)\.(\w+)", r"decoder.mask_predictor.mask_embedder.\1.0.\2"),
]


def frame_detector_rules() -> list[Rule]:
    """Return the rules from Mask2Former with a ResNet or Swin backbone to `FrameDetector`."""
    return [
        *prefixed([*RESNET_BACKBONE, *swin_backbone_rules()], "model.pixel_level_module.encoder."),
        *prefixed(PIXEL_DECODER, "model.pixel_level_module.decoder."),
        *prefixed(FRAME_DECODER, "model.transformer_module."),
        Rename(rf"{_FRAME_PREDICTOR}\.class_embed\.(\w+)", r"class_predictor.\1"),
        Ignore(r"criterion\.empty_weight", "class weights of the loss are configuration"),
        Ignore(r"pixel_(mean|std)", "normalisation belongs to the video processor"),
    ]


# Configurations


def infer_backbone_config(state_dict: Mapping[str, torch.Tensor]) -> PreTrainedConfig:
    """Read the configuration of the backbone from the shapes of a checkpoint.

    Args:
        state_dict: released names, `backbone.*` among them, to tensors.

    Returns:
        A `ResNetConfig` or a `SwinConfig`, with all four stages as outputs.

    Raises:
        ValueError: the backbone is neither a ResNet nor a Swin.
        KeyError: a tensor that shows a size is missing.
    """
    found: dict[str, Any]
    if "backbone.stem.conv1.weight" in state_dict:
        bottleneck = "backbone.res2.0.conv3.weight" in state_dict
        last = "conv3" if bottleneck else "conv2"
        found = {
            "embedding_size": len(state_dict["backbone.stem.conv1.weight"]),
            "hidden_sizes": [len(state_dict[f"backbone.res{stage}.0.{last}.weight"]) for stage in range(2, 6)],
            "depths": [count_indices(state_dict, rf"backbone\.res{stage}\.(\d+)\.") for stage in range(2, 6)],
            "layer_type": "bottleneck" if bottleneck else "basic",
            "out_features": _STAGES,
        }
        return ResNetConfig(**found)
    if "backbone.patch_embed.proj.weight" in state_dict:
        embed_dim, _, patch_size, _ = state_dict["backbone.patch_embed.proj.weight"].shape
        tables = [
            state_dict[f"backbone.layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(4)
        ]
        found = {
            "embed_dim": embed_dim,
            "patch_size": patch_size,
            "depths": [count_indices(state_dict, rf"backbone\.layers\.{stage}\.blocks\.(\d+)\.") for stage in range(4)],
            "num_heads": [table.shape[1] for table in tables],
            # a table has (2 x window - 1)^2 rows
            "window_size": (math.isqrt(len(tables[0])) + 1) // 2,
            "mlp_ratio": len(state_dict["backbone.layers.0.blocks.0.mlp.fc1.weight"]) / embed_dim,
            "drop_path_rate": 0.3,
            "out_features": _STAGES,
        }
        return SwinConfig(**found)
    raise ValueError(
        "The backbone of the checkpoint is neither a ResNet (backbone.stem.conv1.weight) nor a Swin "
        "(backbone.patch_embed.proj.weight)."
    )


def infer_frame_detector_config(state_dict: Mapping[str, torch.Tensor], **settings: Any) -> FrameDetectorConfig:
    """Read the configuration of Mask2Former, the number of classes included, from the shapes of a checkpoint.

    A backbone without a detector, as trained on ImageNet, gets the sizes of the published Mask2Former.

    Args:
        state_dict: released names to tensors.
        **settings: fields that take precedence, for example `id2label`.

    Returns:
        The configuration of the frame detector.

    Raises:
        ValueError: the backbone is neither a ResNet nor a Swin.
        KeyError: a tensor that shows a size is missing.
    """
    backbone_config = infer_backbone_config(state_dict)
    if not any(name.startswith("sem_seg_head.") for name in state_dict):
        return FrameDetectorConfig(backbone_config=backbone_config, **settings)
    pixel_decoder, predictor = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."
    encoder_layers, decoder_layers = (
        f"{pixel_decoder}transformer.encoder.layers.",
        f"{predictor}transformer_ffn_layers.",
    )

    def rows(name: str) -> int:
        return len(state_dict[name])

    num_points = NUM_LEVELS * NUM_POINTS
    found = {
        "backbone_config": backbone_config,
        "feature_size": rows(f"{pixel_decoder}input_proj.0.0.weight"),
        "mask_feature_size": rows(f"{pixel_decoder}mask_features.weight"),
        "hidden_dim": rows(f"{predictor}decoder_norm.weight"),
        "encoder_feedforward_dim": rows(f"{encoder_layers}0.linear1.weight"),
        "dim_feedforward": rows(f"{decoder_layers}0.linear1.weight"),
        "encoder_layers": count_indices(state_dict, rf"{re.escape(encoder_layers)}(\d+)\."),
        "decoder_layers": count_indices(state_dict, rf"{re.escape(decoder_layers)}(\d+)\.") + 1,
        "num_attention_heads": rows(f"{encoder_layers}0.self_attn.attention_weights.weight") // num_points,
        "num_queries": rows(f"{predictor}query_embed.weight"),
    }
    if "id2label" not in settings:
        found["num_labels"] = rows(f"{predictor}class_embed.weight") - 1  # without no-object
    return FrameDetectorConfig(**{**found, **settings})


def infer_mask2former_config(state_dict: Mapping[str, torch.Tensor], **settings: Any) -> Mask2FormerConfig:
    """Read the configuration of a Mask2Former checkpoint for the model of transformers.

    Args:
        state_dict: released names to tensors.
        **settings: fields that take precedence, for example `id2label`.

    Returns:
        The configuration of transformers' Mask2Former.

    Raises:
        ValueError: the backbone is neither a ResNet nor a Swin.
        KeyError: a tensor that shows a size is missing.
    """
    found = infer_frame_detector_config(state_dict).to_dict()
    shared = {field.name for field in fields(Mask2FormerConfig)}
    return Mask2FormerConfig(**{**{name: value for name, value in found.items() if name in shared}, **settings})


def infer_mask2former_vis_config(state_dict: Mapping[str, torch.Tensor], **settings: Any) -> Mask2FormerVisConfig:
    """Read the configuration of a Mask2Former-VIS checkpoint, whose sizes are those of its frame detector.

    Args:
        state_dict: released names to tensors.
        **settings: fields that take precedence, for example `id2label`.

    Returns:
        The configuration of Mask2Former-VIS.

    Raises:
        ValueError: the backbone is neither a ResNet nor a Swin.
        KeyError: a tensor that shows a size is missing.
    """
    detector_config = infer_frame_detector_config(state_dict)
    return cast(Mask2FormerVisConfig, Mask2FormerVisConfig.from_frame_detector(detector_config, **settings))


def infer_minvis_config(state_dict: Mapping[str, torch.Tensor], **settings: Any) -> MinVisConfig:
    """Read the configuration of a MinVIS checkpoint, whose sizes are those of its frame detector.

    Args:
        state_dict: released names to tensors.
        **settings: fields that take precedence, for example `id2label`.

    Returns:
        The configuration of MinVIS.

    Raises:
        ValueError: the backbone is neither a ResNet nor a Swin.
        KeyError: a tensor that shows a size is missing.
    """
    return cast(MinVisConfig, MinVisConfig.from_frame_detector(infer_frame_detector_config(state_dict), **settings))


# Entries

# In the format of transformers: for images with its own model, for videos with the frame detector or MinVIS.
MASK2FORMER = Conversion(
    rules=frame_detector_rules,
    infer_config=infer_mask2former_config,
    model_class=Mask2FormerForUniversalSegmentation,
    short_sides=FRAME_SHORT_SIDES,
)
MASK2FORMER_VIS = Conversion(
    rules=frame_detector_rules,
    infer_config=infer_mask2former_vis_config,
    model_class=Mask2FormerVisForVideoInstanceSegmentation,
    short_sides=FRAME_SHORT_SIDES,
    note="The tensors do not show whether the model was trained on videos. If it was trained on images, convert it as "
    "minvis, which tracks the objects of such a model.",
)
MINVIS = Conversion(
    rules=frame_detector_rules,
    infer_config=infer_minvis_config,
    model_class=MinVisForVideoInstanceSegmentation,
    short_sides=FRAME_SHORT_SIDES,
)
