# SPDX-License-Identifier: Apache-2.0
"""Fill models with released weights module by module, as a reference for the name tables."""

import torch
from torch import Tensor, nn

Released = dict[str, Tensor]


@torch.no_grad()
def put(module: nn.Module, released: Released, name: str, rows: slice = slice(None)) -> None:
    """Copy the weight and, if the module has one, the bias."""
    module.weight.copy_(released[f"{name}.weight"][rows])
    if module.bias is not None:
        module.bias.copy_(released[f"{name}.bias"][rows])


@torch.no_grad()
def put_packed(modules: list[nn.Module], weight: Tensor, bias: Tensor) -> None:
    """Copy stacked projections for queries, keys and values."""
    width = weight.shape[1]
    for index, module in enumerate(modules):
        module.weight.copy_(weight[index * width : (index + 1) * width])
        module.bias.copy_(bias[index * width : (index + 1) * width])


def put_attention(attention: nn.Module, released: Released, name: str) -> None:
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    put_packed(projections, released[f"{name}.in_proj_weight"], released[f"{name}.in_proj_bias"])
    put(attention.out_proj, released, f"{name}.out_proj")


def fill_swin(backbone: nn.Module, released: Released) -> None:
    """Fill transformers' `SwinBackbone`."""
    swin = backbone.swin
    put(swin.embeddings.patch_embeddings.projection, released, "backbone.patch_embed.proj")
    put(swin.embeddings.norm, released, "backbone.patch_embed.norm")
    for stage, layer in enumerate(swin.encoder.layers):
        for number, block in enumerate(layer.blocks):
            name, attention = f"backbone.layers.{stage}.blocks.{number}", block.attention
            put(block.layernorm_before, released, f"{name}.norm1")
            packed = released[f"{name}.attn.qkv.weight"], released[f"{name}.attn.qkv.bias"]
            put_packed([attention.q_proj, attention.k_proj, attention.v_proj], *packed)
            put(attention.o_proj, released, f"{name}.attn.proj")
            table = attention.relative_position_bias.relative_position_bias_table
            table.data.copy_(released[f"{name}.attn.relative_position_bias_table"])
            put(block.layernorm_after, released, f"{name}.norm2")
            put(block.mlp.fc1, released, f"{name}.mlp.fc1")
            put(block.mlp.fc2, released, f"{name}.mlp.fc2")
        if stage < 3:
            put(layer.downsample.norm, released, f"backbone.layers.{stage}.downsample.norm")
            put(layer.downsample.reduction, released, f"backbone.layers.{stage}.downsample.reduction")
        put(backbone.hidden_states_norms[f"stage{stage + 1}"], released, f"backbone.norm{stage}")


def fill_mask2former(model: nn.Module, released: Released) -> None:
    """Fill transformers' `Mask2FormerForUniversalSegmentation` with Swin, or a frame detector of this package."""
    fill_swin(model.model.pixel_level_module.encoder, released)
    pixel_decoder, pixel = model.model.pixel_level_module.decoder, "sem_seg_head.pixel_decoder"
    for level in range(3):
        convolution, norm = pixel_decoder.input_projections[level]
        put(convolution, released, f"{pixel}.input_proj.{level}.0")
        put(norm, released, f"{pixel}.input_proj.{level}.1")
    pixel_decoder.level_embed.data.copy_(released[f"{pixel}.transformer.level_embed"])
    for number, layer in enumerate(pixel_decoder.encoder.layers):
        name = f"{pixel}.transformer.encoder.layers.{number}"
        for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
            put(getattr(layer.self_attn, part), released, f"{name}.self_attn.{part}")
        put(layer.self_attn_layer_norm, released, f"{name}.norm1")
        put(layer.fc1, released, f"{name}.linear1")
        put(layer.fc2, released, f"{name}.linear2")
        put(layer.final_layer_norm, released, f"{name}.norm2")
    put(pixel_decoder.adapter_1[0], released, f"{pixel}.adapter_1")
    put(pixel_decoder.adapter_1[1], released, f"{pixel}.adapter_1.norm")
    put(pixel_decoder.layer_1[0], released, f"{pixel}.layer_1")
    put(pixel_decoder.layer_1[1], released, f"{pixel}.layer_1.norm")
    put(pixel_decoder.mask_projection, released, f"{pixel}.mask_features")

    module, predictor = model.model.transformer_module, "sem_seg_head.predictor"
    module.queries_features.weight.data.copy_(released[f"{predictor}.query_feat.weight"])
    module.queries_embedder.weight.data.copy_(released[f"{predictor}.query_embed.weight"])
    module.level_embed.weight.data.copy_(released[f"{predictor}.level_embed.weight"])
    for number, layer in enumerate(module.decoder.layers):
        name = f"{predictor}.transformer_cross_attention_layers.{number}"
        layer.cross_attn.in_proj_weight.data.copy_(released[f"{name}.multihead_attn.in_proj_weight"])
        layer.cross_attn.in_proj_bias.data.copy_(released[f"{name}.multihead_attn.in_proj_bias"])
        put(layer.cross_attn.out_proj, released, f"{name}.multihead_attn.out_proj")
        put(layer.cross_attn_layer_norm, released, f"{name}.norm")
        name = f"{predictor}.transformer_self_attention_layers.{number}"
        put_attention(layer.self_attn, released, f"{name}.self_attn")
        put(layer.self_attn_layer_norm, released, f"{name}.norm")
        name = f"{predictor}.transformer_ffn_layers.{number}"
        put(layer.fc1, released, f"{name}.linear1")
        put(layer.fc2, released, f"{name}.linear2")
        put(layer.final_layer_norm, released, f"{name}.norm")
    put(module.decoder.layernorm, released, f"{predictor}.decoder_norm")
    for number in range(3):
        layer = module.decoder.mask_predictor.mask_embedder.get_submodule(f"{number}.0")
        put(layer, released, f"{predictor}.mask_embed.layers.{number}")
    put(model.class_predictor, released, f"{predictor}.class_embed")


def fill_video_head(head: nn.Module, released: Released) -> None:
    """Fill the video head of VITA, or of GenVIS with its memory."""
    name = "vita_module"
    put(head.mask_projection, released, f"{name}.vita_mask_features")
    put(head.input_projection, released, f"{name}.input_proj_dec")
    head.queries_features.weight.data.copy_(released[f"{name}.query_feat.weight"])
    head.queries_embedder.weight.data.copy_(released[f"{name}.query_embed.weight"])
    head.frame_queries_embedder.weight.data.copy_(released[f"{name}.fq_pos.weight"])
    for number, layer in enumerate(head.encoder.layers):
        put_attention(layer.self_attn, released, f"{name}.enc_self_attn.{number}.self_attn")
        put(layer.self_attn_layer_norm, released, f"{name}.enc_self_attn.{number}.norm")
        put(layer.feed_forward.fc1, released, f"{name}.enc_ffn.{number}.linear1")
        put(layer.feed_forward.fc2, released, f"{name}.enc_ffn.{number}.linear2")
        put(layer.final_layer_norm, released, f"{name}.enc_ffn.{number}.norm")
    for number, layer in enumerate(head.decoder.layers):
        cross, own = (f"{name}.transformer_{kind}_attention_layers.{number}" for kind in ("cross", "self"))
        put_attention(layer.cross_attn, released, f"{cross}.multihead_attn")
        put(layer.cross_attn_layer_norm, released, f"{cross}.norm")
        put_attention(layer.self_attn, released, f"{own}.self_attn")
        put(layer.self_attn_layer_norm, released, f"{own}.norm")
        put(layer.feed_forward.fc1, released, f"{name}.transformer_ffn_layers.{number}.linear1")
        put(layer.feed_forward.fc2, released, f"{name}.transformer_ffn_layers.{number}.linear2")
        put(layer.final_layer_norm, released, f"{name}.transformer_ffn_layers.{number}.norm")
    put(head.decoder.layernorm, released, f"{name}.decoder_norm")
    put(head.class_predictor, released, f"{name}.class_embed")
    for number in range(3):
        put(head.mask_embedder[number][0], released, f"{name}.mask_embed.layers.{number}")
    put(head.frame_similarity_projection, released, f"{name}.sim_embed_frame")
    put(head.video_similarity_projection, released, f"{name}.sim_embed_clip")
    if hasattr(head, "memory_attention"):
        memory = head.memory_attention
        put(memory.memory_key_projection, released, f"{name}.pre_memory_embed_k")
        put(memory.memory_value_projection, released, f"{name}.pre_memory_embed_v")
        put(memory.query_key_projection, released, f"{name}.pre_query_embed_k")
        put(memory.query_value_projection, released, f"{name}.pre_query_embed_v")
