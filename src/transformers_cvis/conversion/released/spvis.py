# SPDX-License-Identifier: Apache-2.0
"""SPVIS and DVIS checkpoints: Mask2Former's names for the detector, and those of a tracker and of refiners."""

from collections.abc import Mapping
from typing import Any

import torch

from ...modeling.spvis import SpvisConfig, SpvisForVideoInstanceSegmentation
from ..rules import Conversion, Rename, Rule, count_groups, count_indices, packed_attention, prefixed
from .mask2former import FRAME_SHORT_SIDES, frame_detector_rules, infer_frame_detector_config

# Fields that reproduce the behaviour with which released weights were trained and evaluated.
RELEASED_DVIS = {"alignment": "released"}
RELEASED_SPVIS = {"alignment": "released", "filter_residual": "released"}


# Names


def attention_layer(source: str, target: str, attention: str) -> list[Rule]:
    """Return the rules of an attention layer with its norm.

    Args:
        source: regular expression for the released name of the layer.
        target: name of the layer in the model.
        attention: released name of the attention in the layer.
    """
    last = count_groups(source)
    return [
        *packed_attention(rf"{source}\.{attention}", f"{target}.attention"),
        Rename(rf"{source}\.norm\.(\w+)", rf"{target}.layer_norm.\{last + 1}"),
    ]


def feed_forward_layer(source: str, target: str) -> list[Rule]:
    """Return the rules of a feed-forward layer with its norm.

    Args:
        source: regular expression for the released name of the layer.
        target: name of the layer in the model.
    """
    last = count_groups(source)
    return [
        Rename(rf"{source}\.linear([12])\.(\w+)", rf"{target}.feed_forward.fc\{last + 1}.\{last + 2}"),
        Rename(rf"{source}\.norm\.(\w+)", rf"{target}.layer_norm.\{last + 1}"),
    ]


def prediction_heads(source: str) -> list[Rule]:
    """Return the rules of the heads for classes and masks.

    Args:
        source: regular expression for the released name of the part that has the heads.
    """
    return [
        Rename(rf"{source}\.decoder_norm\.(\w+)", r"layer_norm.\1"),
        Rename(rf"{source}\.class_embed\.(\w+)", r"class_predictor.\1"),
        Rename(rf"{source}\.mask_embed\.layers\.(\d+)\.(\w+)", r"mask_embedder.\1.0.\2"),
        Rename(rf"{source}\.activation_proj\.(\w+)", r"frame_weight.\1"),
    ]


_TRACKING_LAYER = r"layers.\1"
_TRACKER_FILTER = r"tracker\.transformer_cross_attention_layers\.(\d+)"

TRACKER: list[Rule] = [
    *attention_layer(r"tracker\.transformer_self_attention_layers\.(\d+)", f"{_TRACKING_LAYER}.self_attn", "self_attn"),
    *feed_forward_layer(r"tracker\.transformer_ffn_layers\.(\d+)", f"{_TRACKING_LAYER}.feed_forward"),
    *prediction_heads("tracker"),
]

DISTURBANCE_FILTER: list[Rule] = [
    Rename(rf"{_TRACKER_FILTER}\.temporal_conv\.(\w+)", rf"{_TRACKING_LAYER}.filter.temporal_conv.\2"),
    *packed_attention(rf"{_TRACKER_FILTER}\.multihead_attn", f"{_TRACKING_LAYER}.filter.cross_attn"),
    *packed_attention(rf"{_TRACKER_FILTER}\.self_attn", f"{_TRACKING_LAYER}.filter.self_attn"),
    Rename(rf"{_TRACKER_FILTER}\.feedforward\.0\.(\w+)", rf"{_TRACKING_LAYER}.filter.feed_forward.fc1.\2"),
    Rename(rf"{_TRACKER_FILTER}\.feedforward\.3\.(\w+)", rf"{_TRACKING_LAYER}.filter.feed_forward.fc2.\2"),
    Rename(rf"{_TRACKER_FILTER}\.norm1\.(\w+)", rf"{_TRACKING_LAYER}.filter.temporal_layer_norm.\2"),
    Rename(rf"{_TRACKER_FILTER}\.norm2\.(\w+)", rf"{_TRACKING_LAYER}.filter.cross_attn_layer_norm.\2"),
    Rename(rf"{_TRACKER_FILTER}\.norm3\.(\w+)", rf"{_TRACKING_LAYER}.filter.self_attn_layer_norm.\2"),
    Rename(rf"{_TRACKER_FILTER}\.norm4\.(\w+)", rf"{_TRACKING_LAYER}.filter.final_layer_norm.\2"),
]

REFERRING_FILTER: list[Rule] = attention_layer(_TRACKER_FILTER, f"{_TRACKING_LAYER}.filter", "multihead_attn")

# DVIS renamed its refiner; older checkpoints have the second name.
_REFINER = r"(?:refiner|offline_tracker)"
_REFINER_CONVOLUTION = rf"{_REFINER}\.conv_short_aggregate_layers\.(\d+)"

TEMPORAL_REFINER: list[Rule] = [
    *attention_layer(
        rf"{_REFINER}\.transformer_time_self_attention_layers\.(\d+)", f"{_TRACKING_LAYER}.time_attn", "self_attn"
    ),
    Rename(rf"{_REFINER_CONVOLUTION}\.0\.(\w+)", rf"{_TRACKING_LAYER}.conv1.\2"),
    Rename(rf"{_REFINER_CONVOLUTION}\.2\.(\w+)", rf"{_TRACKING_LAYER}.conv2.\2"),
    Rename(rf"{_REFINER}\.conv_norms\.(\d+)\.(\w+)", rf"{_TRACKING_LAYER}.conv_layer_norm.\2"),
    *attention_layer(
        rf"{_REFINER}\.transformer_obj_self_attention_layers\.(\d+)", f"{_TRACKING_LAYER}.self_attn", "self_attn"
    ),
    *attention_layer(
        rf"{_REFINER}\.transformer_cross_attention_layers\.(\d+)", f"{_TRACKING_LAYER}.cross_attn", "multihead_attn"
    ),
    *feed_forward_layer(rf"{_REFINER}\.transformer_ffn_layers\.(\d+)", f"{_TRACKING_LAYER}.feed_forward"),
    *prediction_heads(_REFINER),
]

COMPENSATOR: list[Rule] = [
    *attention_layer(r"compensator\.enhanced_local_self_attn", "compensator.local_attn", "self_attn"),
    *attention_layer(r"compensator\.self_attention", "compensator.self_attn", "self_attn"),
    *feed_forward_layer(r"compensator\.ffn", "compensator.feed_forward"),
    Rename(r"compensator\.add_norm1\.norm\.(\w+)", r"compensator.self_attn_layer_norm.\1"),
    Rename(r"compensator\.add_norm2\.norm\.(\w+)", r"compensator.feed_forward_layer_norm.\1"),
]

INTERACTION: list[Rule] = [
    *attention_layer(r"interaction\.cross_attention_layers\.(\d+)", f"{_TRACKING_LAYER}.cross_attn", "multihead_attn"),
    Rename(r"interaction\.asymmetric_conv_layers\.(\d+)\.conv([12])\.(\w+)", rf"{_TRACKING_LAYER}.conv\2.\3"),
    Rename(r"interaction\.asymmetric_conv_layers\.(\d+)\.norm\.(\w+)", rf"{_TRACKING_LAYER}.conv_layer_norm.\2"),
    *attention_layer(
        r"interaction\.interaction_attention_layers\.(\d+)", f"{_TRACKING_LAYER}.self_attn", "multihead_attn"
    ),
    *feed_forward_layer(r"interaction\.ffn_layers\.(\d+)", f"{_TRACKING_LAYER}.feed_forward"),
    Rename(r"interaction\.mask_embed\.([02])\.(\w+)", r"mask_embedder.\1.\2"),
    *prediction_heads("interaction"),
]


def spvis_rules() -> list[Rule]:
    """Return the rules from SPVIS, online or offline, to `SpvisForVideoInstanceSegmentation`."""
    return [
        *frame_detector_rules(),
        *prefixed([*TRACKER, *DISTURBANCE_FILTER], "tracker."),
        *prefixed([*COMPENSATOR, *INTERACTION], "refiner."),
    ]


def dvis_rules() -> list[Rule]:
    """Return the rules from DVIS, online or offline, to `SpvisForVideoInstanceSegmentation`."""
    return [
        *frame_detector_rules(),
        *prefixed([*TRACKER, *REFERRING_FILTER], "tracker."),
        *prefixed(TEMPORAL_REFINER, "refiner."),
    ]


# Configurations

_FILTER_FEED_FORWARD = "tracker.transformer_cross_attention_layers.0.feedforward.0.weight"


def infer_spvis_config(state_dict: Mapping[str, torch.Tensor], **settings: Any) -> SpvisConfig:
    """Read the configuration of an SPVIS checkpoint from its shapes, and choose the released behaviour.

    Args:
        state_dict: released names to tensors, online or offline.
        **settings: fields that take precedence, for example `id2label`.

    Returns:
        The configuration of SPVIS with the fields `RELEASED_SPVIS`.

    Raises:
        ValueError: the checkpoint has no tracker, or its tracker has no disturbance filter.
        KeyError: a tensor that shows a size is missing.
    """
    _check_tracker(state_dict, "SPVIS")
    if _FILTER_FEED_FORWARD not in state_dict:
        raise ValueError("The tracker of the checkpoint has no disturbance filter, so it is not SPVIS.")
    found: dict[str, Any] = {
        "filter": "disturbance",
        "filter_dim_feedforward": len(state_dict[_FILTER_FEED_FORWARD]),
        **RELEASED_SPVIS,
    }
    if refiner_layers := count_indices(state_dict, r"interaction\.cross_attention_layers\.(\d+)\."):
        found |= {"refiner": "spvis", "refiner_layers": refiner_layers}
        if not any(name.startswith("compensator.") for name in state_dict):
            found["joint"] = "interaction_only"
    return SpvisConfig(**{**_detector_and_tracker(state_dict), **found, **settings})


def infer_dvis_config(state_dict: Mapping[str, torch.Tensor], **settings: Any) -> SpvisConfig:
    """Read the configuration of a DVIS checkpoint from its shapes, and choose the released behaviour.

    Args:
        state_dict: released names to tensors, online or offline.
        **settings: fields that take precedence, for example `id2label`.

    Returns:
        The configuration of SPVIS that is DVIS, with the fields `RELEASED_DVIS`.

    Raises:
        ValueError: the checkpoint has no tracker, or its tracker has a disturbance filter.
        KeyError: a tensor that shows a size is missing.
    """
    _check_tracker(state_dict, "DVIS")
    if _FILTER_FEED_FORWARD in state_dict:
        raise ValueError("The tracker of the checkpoint has a disturbance filter, so it is not DVIS.")
    found: dict[str, Any] = {"filter": "referring", **RELEASED_DVIS}
    if refiner_layers := count_indices(state_dict, rf"{_REFINER}\.transformer_cross_attention_layers\.(\d+)\."):
        found |= {"refiner": "dvis", "refiner_layers": refiner_layers}
    return SpvisConfig(**{**_detector_and_tracker(state_dict), **found, **settings})


def _check_tracker(state_dict: Mapping[str, torch.Tensor], name: str) -> None:
    if "tracker.class_embed.weight" not in state_dict:
        raise ValueError(f"The checkpoint has no tracker (`tracker.*`), so it is not {name}.")


def _detector_and_tracker(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    detector = infer_frame_detector_config(state_dict).to_dict()
    del detector["model_type"]
    return {
        **detector,
        "tracker_layers": count_indices(state_dict, r"tracker\.transformer_cross_attention_layers\.(\d+)\."),
        "tracker_dim_feedforward": len(state_dict["tracker.transformer_ffn_layers.0.linear1.weight"]),
    }


# Entries

SPVIS = Conversion(
    rules=spvis_rules,
    infer_config=infer_spvis_config,
    model_class=SpvisForVideoInstanceSegmentation,
    short_sides=FRAME_SHORT_SIDES,
)
DVIS = Conversion(
    rules=dvis_rules,
    infer_config=infer_dvis_config,
    model_class=SpvisForVideoInstanceSegmentation,
    short_sides=FRAME_SHORT_SIDES,
)
