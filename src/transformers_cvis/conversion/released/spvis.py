"""Tables of parameter names of SPVIS and DVIS: tracker and refiners beside the frame detector."""

import re

from ..rules import Rename, Rule, frame_detector_rules, packed_attention, prefixed


def attention_layer(source: str, target: str, attention: str) -> list[Rule]:
    """Attention with its norm; `attention` is the released name of the attention in it."""
    last = re.compile(source).groups
    return [
        *packed_attention(rf"{source}\.{attention}", f"{target}.attention"),
        Rename(rf"{source}\.norm\.(\w+)", rf"{target}.layer_norm.\{last + 1}"),
    ]


def feed_forward_layer(source: str, target: str) -> list[Rule]:
    last = re.compile(source).groups
    return [
        Rename(rf"{source}\.linear([12])\.(\w+)", rf"{target}.feed_forward.fc\{last + 1}.\{last + 2}"),
        Rename(rf"{source}\.norm\.(\w+)", rf"{target}.layer_norm.\{last + 1}"),
    ]


def heads(source: str) -> list[Rule]:
    return [
        Rename(rf"{source}\.decoder_norm\.(\w+)", r"layer_norm.\1"),
        Rename(rf"{source}\.class_embed\.(\w+)", r"class_predictor.\1"),
        Rename(rf"{source}\.mask_embed\.layers\.(\d+)\.(\w+)", r"mask_embedder.\1.0.\2"),
        Rename(rf"{source}\.activation_proj\.(\w+)", r"frame_weight.\1"),
    ]


_LAYER = r"layers.\1"
_FILTER = r"tracker\.transformer_cross_attention_layers\.(\d+)"

TRACKER: list[Rule] = [
    *attention_layer(r"tracker\.transformer_self_attention_layers\.(\d+)", f"{_LAYER}.self_attn", "self_attn"),
    *feed_forward_layer(r"tracker\.transformer_ffn_layers\.(\d+)", f"{_LAYER}.feed_forward"),
    *heads("tracker"),
]

DISTURBANCE_FILTER: list[Rule] = [
    Rename(rf"{_FILTER}\.temporal_conv\.(\w+)", rf"{_LAYER}.filter.temporal_conv.\2"),
    *packed_attention(rf"{_FILTER}\.multihead_attn", f"{_LAYER}.filter.cross_attn"),
    *packed_attention(rf"{_FILTER}\.self_attn", f"{_LAYER}.filter.self_attn"),
    Rename(rf"{_FILTER}\.feedforward\.0\.(\w+)", rf"{_LAYER}.filter.feed_forward.fc1.\2"),
    Rename(rf"{_FILTER}\.feedforward\.3\.(\w+)", rf"{_LAYER}.filter.feed_forward.fc2.\2"),
    Rename(rf"{_FILTER}\.norm1\.(\w+)", rf"{_LAYER}.filter.temporal_layer_norm.\2"),
    Rename(rf"{_FILTER}\.norm2\.(\w+)", rf"{_LAYER}.filter.cross_attn_layer_norm.\2"),
    Rename(rf"{_FILTER}\.norm3\.(\w+)", rf"{_LAYER}.filter.self_attn_layer_norm.\2"),
    Rename(rf"{_FILTER}\.norm4\.(\w+)", rf"{_LAYER}.filter.final_layer_norm.\2"),
]

REFERRING_FILTER: list[Rule] = attention_layer(_FILTER, f"{_LAYER}.filter", "multihead_attn")

# DVIS renamed its refiner; older files have the former name.
_REFINER = r"(?:refiner|offline_tracker)"
_CONVOLUTION = rf"{_REFINER}\.conv_short_aggregate_layers\.(\d+)"

TEMPORAL_REFINER: list[Rule] = [
    *attention_layer(rf"{_REFINER}\.transformer_time_self_attention_layers\.(\d+)", f"{_LAYER}.time_attn", "self_attn"),
    Rename(rf"{_CONVOLUTION}\.0\.(\w+)", rf"{_LAYER}.conv1.\2"),
    Rename(rf"{_CONVOLUTION}\.2\.(\w+)", rf"{_LAYER}.conv2.\2"),
    Rename(rf"{_REFINER}\.conv_norms\.(\d+)\.(\w+)", rf"{_LAYER}.conv_layer_norm.\2"),
    *attention_layer(rf"{_REFINER}\.transformer_obj_self_attention_layers\.(\d+)", f"{_LAYER}.self_attn", "self_attn"),
    *attention_layer(
        rf"{_REFINER}\.transformer_cross_attention_layers\.(\d+)", f"{_LAYER}.cross_attn", "multihead_attn"
    ),
    *feed_forward_layer(rf"{_REFINER}\.transformer_ffn_layers\.(\d+)", f"{_LAYER}.feed_forward"),
    *heads(_REFINER),
]

COMPENSATOR: list[Rule] = [
    *attention_layer(r"compensator\.enhanced_local_self_attn", "compensator.local_attn", "self_attn"),
    *attention_layer(r"compensator\.self_attention", "compensator.self_attn", "self_attn"),
    *feed_forward_layer(r"compensator\.ffn", "compensator.feed_forward"),
    Rename(r"compensator\.add_norm1\.norm\.(\w+)", r"compensator.self_attn_layer_norm.\1"),
    Rename(r"compensator\.add_norm2\.norm\.(\w+)", r"compensator.feed_forward_layer_norm.\1"),
]

INTERACTION: list[Rule] = [
    *attention_layer(r"interaction\.cross_attention_layers\.(\d+)", f"{_LAYER}.cross_attn", "multihead_attn"),
    Rename(r"interaction\.asymmetric_conv_layers\.(\d+)\.conv([12])\.(\w+)", rf"{_LAYER}.conv\2.\3"),
    Rename(r"interaction\.asymmetric_conv_layers\.(\d+)\.norm\.(\w+)", rf"{_LAYER}.conv_layer_norm.\2"),
    *attention_layer(r"interaction\.interaction_attention_layers\.(\d+)", f"{_LAYER}.self_attn", "multihead_attn"),
    *feed_forward_layer(r"interaction\.ffn_layers\.(\d+)", f"{_LAYER}.feed_forward"),
    Rename(r"interaction\.mask_embed\.([02])\.(\w+)", r"mask_embedder.\1.\2"),
    *heads("interaction"),
]


def spvis_rules() -> list[Rule]:
    """SPVIS, online or offline, to `SpvisForVideoInstanceSegmentation`."""
    return [
        *frame_detector_rules(),
        *prefixed([*TRACKER, *DISTURBANCE_FILTER], "tracker."),
        *prefixed([*COMPENSATOR, *INTERACTION], "refiner."),
    ]


def dvis_rules() -> list[Rule]:
    """DVIS, online or offline, to `SpvisForVideoInstanceSegmentation` with the referring filter."""
    return [
        *frame_detector_rules(),
        *prefixed([*TRACKER, *REFERRING_FILTER], "tracker."),
        *prefixed(TEMPORAL_REFINER, "refiner."),
    ]
