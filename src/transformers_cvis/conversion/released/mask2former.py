"""Configurations read off the shapes of a released state dict."""

import math
import re
from dataclasses import fields

import torch
from transformers import Mask2FormerConfig, PreTrainedConfig, ResNetConfig, SwinConfig

from ...modeling.frame_detector import FrameDetectorConfig
from ...modeling.frame_detector.pixel_decoder import NUM_LEVELS, NUM_POINTS
from ...modeling.minvis import MinVisConfig

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def count(state_dict: dict[str, torch.Tensor], pattern: str) -> int:
    """How many values the first group of `pattern` takes over all names; `pattern` matches the start of a name."""
    return len({match.group(1) for name in state_dict if (match := re.match(pattern, name))})


def infer_backbone_config(state_dict: dict[str, torch.Tensor]) -> PreTrainedConfig:
    """ResNet or Swin configuration from names `backbone.*` of a Detectron2 state dict.

    Raises:
        ValueError: when the backbone is neither.
    """
    if "backbone.stem.conv1.weight" in state_dict:
        bottleneck = "backbone.res2.0.conv3.weight" in state_dict
        last = "conv3" if bottleneck else "conv2"
        return ResNetConfig(
            embedding_size=state_dict["backbone.stem.conv1.weight"].shape[0],
            hidden_sizes=[state_dict[f"backbone.res{stage}.0.{last}.weight"].shape[0] for stage in range(2, 6)],
            depths=[count(state_dict, rf"backbone\.res{stage}\.(\d+)\.") for stage in range(2, 6)],
            layer_type="bottleneck" if bottleneck else "basic",
            out_features=STAGES,
        )
    if "backbone.patch_embed.proj.weight" in state_dict:
        embed_dim, _, patch_size, _ = state_dict["backbone.patch_embed.proj.weight"].shape
        tables = [
            state_dict[f"backbone.layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(4)
        ]
        return SwinConfig(
            embed_dim=embed_dim,
            patch_size=patch_size,
            depths=[count(state_dict, rf"backbone\.layers\.{stage}\.blocks\.(\d+)\.") for stage in range(4)],
            num_heads=[table.shape[1] for table in tables],
            window_size=(math.isqrt(tables[0].shape[0]) + 1) // 2,
            mlp_ratio=state_dict["backbone.layers.0.blocks.0.mlp.fc1.weight"].shape[0] / embed_dim,
            drop_path_rate=0.3,
            out_features=STAGES,
        )
    raise ValueError(
        "The checkpoint's backbone is neither a ResNet (backbone.stem.conv1.weight) nor a Swin "
        "(backbone.patch_embed.proj.weight)."
    )


def infer_frame_detector_config(state_dict: dict[str, torch.Tensor], **settings) -> FrameDetectorConfig:
    """Mask2Former's configuration from the names and shapes of a Detectron2 state dict, `num_labels` included.

    A backbone alone, as trained on ImageNet, gets the head of Mask2Former's publication.

    Args:
        state_dict: released names to tensors.
        settings: fields that shapes do not tell, for example `id2label`.

    Raises:
        ValueError: when a tensor that a size is read from is missing.
    """
    backbone_config = infer_backbone_config(state_dict)
    if not any(name.startswith("sem_seg_head.") for name in state_dict):
        return FrameDetectorConfig(backbone_config=backbone_config, **settings)
    pixel, predictor = "sem_seg_head.pixel_decoder.", "sem_seg_head.predictor."

    def rows(name: str) -> int:
        if name not in state_dict:
            raise ValueError(f"Not a Mask2Former checkpoint: {name} is missing.")
        return state_dict[name].shape[0]

    encoder, decoder = f"{pixel}transformer.encoder.layers.", f"{predictor}transformer_ffn_layers."
    found = {
        "backbone_config": backbone_config,
        "feature_size": rows(f"{pixel}input_proj.0.0.weight"),
        "mask_feature_size": rows(f"{pixel}mask_features.weight"),
        "hidden_dim": rows(f"{predictor}decoder_norm.weight"),
        "encoder_feedforward_dim": rows(f"{encoder}0.linear1.weight"),
        "dim_feedforward": rows(f"{decoder}0.linear1.weight"),
        "encoder_layers": count(state_dict, rf"{re.escape(encoder)}(\d+)\."),
        "decoder_layers": count(state_dict, rf"{re.escape(decoder)}(\d+)\.") + 1,
        "num_attention_heads": rows(f"{encoder}0.self_attn.attention_weights.weight") // (NUM_LEVELS * NUM_POINTS),
        "num_queries": rows(f"{predictor}query_embed.weight"),
    }
    if "id2label" not in settings:
        found["num_labels"] = rows(f"{predictor}class_embed.weight") - 1
    return FrameDetectorConfig(**{**found, **settings})


def infer_minvis_config(state_dict: dict[str, torch.Tensor], **settings) -> MinVisConfig:
    """The configuration of a MinVIS checkpoint, which is that of its frame detector.

    Args:
        state_dict: released names to tensors.
        settings: fields that shapes do not tell, for example `id2label`.

    Raises:
        ValueError: when a tensor that a size is read from is missing.
    """
    return MinVisConfig.from_frame_detector(infer_frame_detector_config(state_dict), **settings)


def infer_mask2former_config(state_dict: dict[str, torch.Tensor], **settings) -> Mask2FormerConfig:
    """The configuration of a Mask2Former checkpoint for transformers' own model.

    Args:
        state_dict: released names to tensors.
        settings: fields that shapes do not tell, for example `id2label`.

    Raises:
        ValueError: when a tensor that a size is read from is missing.
    """
    found = infer_frame_detector_config(state_dict).to_dict()
    shared = {field.name for field in fields(Mask2FormerConfig)}
    return Mask2FormerConfig(**{**{name: value for name, value in found.items() if name in shared}, **settings})
