"""Tables of parameter names of the systems with a video head: VITA and GenVIS."""

from ..rules import Ignore, Rename, Rule, frame_detector_rules, packed_attention, prefixed

_HEAD = r"vita_module"
_ENCODER_ATTENTION = rf"{_HEAD}\.enc_self_attn\.(\d+)"
_ENCODER_FEED_FORWARD = rf"{_HEAD}\.enc_ffn\.(\d+)"
_CROSS = rf"{_HEAD}\.transformer_cross_attention_layers\.(\d+)"
_SELF = rf"{_HEAD}\.transformer_self_attention_layers\.(\d+)"
_FEED_FORWARD = rf"{_HEAD}\.transformer_ffn_layers\.(\d+)"
_ENCODER_LAYER = r"encoder.layers.\1"
_DECODER_LAYER = r"decoder.layers.\1"

VIDEO_HEAD: list[Rule] = [
    Rename(rf"{_HEAD}\.vita_mask_features\.(\w+)", r"mask_projection.\1"),
    Rename(rf"{_HEAD}\.input_proj_dec\.(\w+)", r"input_projection.\1"),
    *packed_attention(rf"{_ENCODER_ATTENTION}\.self_attn", rf"{_ENCODER_LAYER}.self_attn"),
    Rename(rf"{_ENCODER_ATTENTION}\.norm\.(\w+)", rf"{_ENCODER_LAYER}.self_attn_layer_norm.\2"),
    Rename(rf"{_ENCODER_FEED_FORWARD}\.linear([12])\.(\w+)", rf"{_ENCODER_LAYER}.feed_forward.fc\2.\3"),
    Rename(rf"{_ENCODER_FEED_FORWARD}\.norm\.(\w+)", rf"{_ENCODER_LAYER}.final_layer_norm.\2"),
    Rename(rf"{_HEAD}\.query_feat\.weight", "queries_features.weight"),
    Rename(rf"{_HEAD}\.query_embed\.weight", "queries_embedder.weight"),
    Rename(rf"{_HEAD}\.fq_pos\.weight", "frame_queries_embedder.weight"),
    *packed_attention(rf"{_CROSS}\.multihead_attn", rf"{_DECODER_LAYER}.cross_attn"),
    Rename(rf"{_CROSS}\.norm\.(\w+)", rf"{_DECODER_LAYER}.cross_attn_layer_norm.\2"),
    *packed_attention(rf"{_SELF}\.self_attn", rf"{_DECODER_LAYER}.self_attn"),
    Rename(rf"{_SELF}\.norm\.(\w+)", rf"{_DECODER_LAYER}.self_attn_layer_norm.\2"),
    Rename(rf"{_FEED_FORWARD}\.linear([12])\.(\w+)", rf"{_DECODER_LAYER}.feed_forward.fc\2.\3"),
    Rename(rf"{_FEED_FORWARD}\.norm\.(\w+)", rf"{_DECODER_LAYER}.final_layer_norm.\2"),
    Rename(rf"{_HEAD}\.decoder_norm\.(\w+)", r"decoder.layernorm.\1"),
    Rename(rf"{_HEAD}\.class_embed\.(\w+)", r"class_predictor.\1"),
    Rename(rf"{_HEAD}\.mask_embed\.layers\.(\d+)\.(\w+)", r"mask_embedder.\1.0.\2"),
    Rename(rf"{_HEAD}\.sim_embed_frame\.(\w+)", r"frame_similarity_projection.\1"),
    Rename(rf"{_HEAD}\.sim_embed_clip\.(\w+)", r"video_similarity_projection.\1"),
]

CLIP_MEMORY: list[Rule] = [
    Rename(rf"{_HEAD}\.pre_(memory|query)_embed_k\.(\w+)", r"memory_attention.\1_key_projection.\2"),
    Rename(rf"{_HEAD}\.pre_(memory|query)_embed_v\.(\w+)", r"memory_attention.\1_value_projection.\2"),
]


def vita_rules() -> list[Rule]:
    """VITA to `VitaForVideoInstanceSegmentation`."""
    return [
        *prefixed(frame_detector_rules(), "detector."),
        *prefixed(VIDEO_HEAD, "video_head."),
        Ignore(r"(vita|genvis)_criterion\.empty_weight", "class weights of the loss are configuration"),
    ]


def genvis_rules() -> list[Rule]:
    """GenVIS to `GenVisForVideoInstanceSegmentation`."""
    return [*vita_rules(), *prefixed(CLIP_MEMORY, "video_head.")]
