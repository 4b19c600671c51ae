"""Tables of parameter names: released Detectron2-style checkpoints on the left, this package on the right.

A rule is a regular expression that must match a whole name, and what becomes of the tensor. Tables are plain lists, so
that a system is its head's rules plus `prefixed(frame_detector_rules(), "detector.")`; the first matching rule counts.
"""

import re
from dataclasses import dataclass, replace
from functools import cache

from transformers import SwinBackbone, SwinConfig


@dataclass(frozen=True)
class Rename:
    """The tensor goes to `target` (a template for `re.Match.expand`); several targets share its rows in equal parts.

    With `squeeze` it loses its first axis, which has length one. With `copies`, a pattern whose first group numbers the
    parts of the model that share the tensor, each gets a copy of its own: `*` in `target` is the number.
    """

    pattern: str
    target: str | tuple[str, ...]
    squeeze: bool = False
    copies: str | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,) if isinstance(self.target, str) else self.target


@dataclass(frozen=True)
class Ignore:
    """The tensor has no place in the model; `reason` says why."""

    pattern: str
    reason: str


Rule = Rename | Ignore


def prefixed(rules: list[Rule], prefix: str) -> list[Rule]:
    """The same rules for a model that holds their model under `prefix`, e.g. "detector."."""
    return [
        replace(rule, target=tuple(prefix + target for target in rule.targets)) if isinstance(rule, Rename) else rule
        for rule in rules
    ]


def packed_attention(source: str, target: str) -> list[Rule]:
    """Rules for an `nn.MultiheadAttention` whose packed projection becomes `q_proj`, `k_proj` and `v_proj`."""
    return [
        Rename(
            rf"{source}\.in_proj_(weight|bias)",
            tuple(rf"{target}.{part}_proj.\g<{_groups(source) + 1}>" for part in "qkv"),
        ),
        Rename(rf"{source}\.out_proj\.(weight|bias)", rf"{target}.out_proj.\g<{_groups(source) + 1}>"),
    ]


def _groups(pattern: str) -> int:
    return re.compile(pattern).groups


IMAGENET_CLASSIFIER = "part of the ImageNet classifier"

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
    Ignore(r"backbone\.stem\.fc\..*", IMAGENET_CLASSIFIER),
]


@cache
def swin_backbone_rules() -> list[Rule]:
    """Swin, with the names of the installed transformers (its version 5 renamed most of them)."""
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
        Ignore(r"backbone\.(norm|head)\..*", IMAGENET_CLASSIFIER),
    ]


_PIXEL = r"sem_seg_head\.pixel_decoder"
_ENCODER_LAYER = rf"{_PIXEL}\.transformer\.encoder\.layers\.(\d+)"

PIXEL_DECODER: list[Rule] = [
    Rename(rf"{_PIXEL}\.input_proj\.(\d+)\.([01])\.(\w+)", r"input_projections.\1.\2.\3"),
    Rename(rf"{_PIXEL}\.transformer\.level_embed", "level_embed"),
    Rename(rf"{_ENCODER_LAYER}\.self_attn\.(\w+)\.(\w+)", r"encoder.layers.\1.self_attn.\2.\3"),
    Rename(rf"{_ENCODER_LAYER}\.norm1\.(\w+)", r"encoder.layers.\1.self_attn_layer_norm.\2"),
    Rename(rf"{_ENCODER_LAYER}\.linear1\.(\w+)", r"encoder.layers.\1.fc1.\2"),
    Rename(rf"{_ENCODER_LAYER}\.linear2\.(\w+)", r"encoder.layers.\1.fc2.\2"),
    Rename(rf"{_ENCODER_LAYER}\.norm2\.(\w+)", r"encoder.layers.\1.final_layer_norm.\2"),
    Rename(rf"{_PIXEL}\.(adapter_1|layer_1)\.weight", r"\1.0.weight"),
    Rename(rf"{_PIXEL}\.(adapter_1|layer_1)\.norm\.(\w+)", r"\1.1.\2"),
    Rename(rf"{_PIXEL}\.mask_features\.(\w+)", r"mask_projection.\1"),
]

_PREDICTOR = r"sem_seg_head\.predictor"
_CROSS = rf"{_PREDICTOR}\.transformer_cross_attention_layers\.(\d+)"
_SELF = rf"{_PREDICTOR}\.transformer_self_attention_layers\.(\d+)"
_FEED_FORWARD = rf"{_PREDICTOR}\.transformer_ffn_layers\.(\d+)"
_LAYER = r"decoder.layers.\1"

FRAME_DECODER: list[Rule] = [
    Rename(rf"{_PREDICTOR}\.query_feat\.weight", "queries_features.weight"),
    Rename(rf"{_PREDICTOR}\.query_embed\.weight", "queries_embedder.weight"),
    Rename(rf"{_PREDICTOR}\.level_embed\.weight", "level_embed.weight"),
    Rename(rf"{_PREDICTOR}\.input_proj\.(\d+)\.(\w+)", r"input_projections.\1.\2"),
    Rename(rf"{_CROSS}\.multihead_attn\.(.+)", rf"{_LAYER}.cross_attn.\2"),
    Rename(rf"{_CROSS}\.norm\.(\w+)", rf"{_LAYER}.cross_attn_layer_norm.\2"),
    *packed_attention(rf"{_SELF}\.self_attn", rf"{_LAYER}.self_attn"),
    Rename(rf"{_SELF}\.norm\.(\w+)", rf"{_LAYER}.self_attn_layer_norm.\2"),
    Rename(rf"{_FEED_FORWARD}\.linear1\.(\w+)", rf"{_LAYER}.fc1.\2"),
    Rename(rf"{_FEED_FORWARD}\.linear2\.(\w+)", rf"{_LAYER}.fc2.\2"),
    Rename(rf"{_FEED_FORWARD}\.norm\.(\w+)", rf"{_LAYER}.final_layer_norm.\2"),
    Rename(rf"{_PREDICTOR}\.decoder_norm\.(\w+)", r"decoder.layernorm.\1"),
    Rename(rf"{_PREDICTOR}\.mask_embed\.layers\.(\d+)\.(\w+)", r"decoder.mask_predictor.mask_embedder.\1.0.\2"),
]


def frame_detector_rules() -> list[Rule]:
    """Mask2Former with a ResNet or Swin backbone to `FrameDetector`."""
    return [
        *prefixed([*RESNET_BACKBONE, *swin_backbone_rules()], "model.pixel_level_module.encoder."),
        *prefixed(PIXEL_DECODER, "model.pixel_level_module.decoder."),
        *prefixed(FRAME_DECODER, "model.transformer_module."),
        Rename(rf"{_PREDICTOR}\.class_embed\.(\w+)", r"class_predictor.\1"),
        Ignore(r"criterion\.empty_weight", "class weights of the loss are configuration"),
        Ignore(r"pixel_(mean|std)", "normalisation belongs to the video processor"),
    ]
