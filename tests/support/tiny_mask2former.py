# SPDX-License-Identifier: Apache-2.0
"""A Mask2Former of transformers with random weights."""

from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, PreTrainedConfig


def tiny_mask2former(backbone_config: PreTrainedConfig | dict, **changes) -> Mask2FormerForUniversalSegmentation:
    """Return a Mask2Former of 32 channels; `changes` are further fields of its configuration."""
    sizes = {
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 32,
        "encoder_layers": 1,
        "dim_feedforward": 32,
        "decoder_layers": 2,
        "num_attention_heads": 2,
        "num_queries": 6,
    }
    return Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=backbone_config, **{**sizes, **changes})
    )
