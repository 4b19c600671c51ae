# SPDX-License-Identifier: Apache-2.0
"""SPVIS and DVIS checkpoints: names of their refiners, and configurations from shapes."""

import pytest
import torch

from tests.support.detectron2_names import TINY, ResNet, dvis_names, meta_state_dict, spvis_names
from transformers_cvis.conversion import convert_state_dict
from transformers_cvis.conversion.released.spvis import infer_dvis_config, infer_spvis_config

FILTER_FEED_FORWARD = "tracker.transformer_cross_attention_layers.0.feedforward.0.weight"
TRACKER = {"tracker.class_embed.weight": torch.zeros(3, 8)}
# One tensor of each of two layers of a refiner.
INTERACTION = {f"interaction.cross_attention_layers.{layer}.norm.bias": (8,) for layer in range(2)}
REFINER = {f"refiner.transformer_cross_attention_layers.{layer}.norm.bias": (8,) for layer in range(2)}
COMPENSATOR = {"compensator.ffn.norm.bias": (8,)}


@pytest.mark.parametrize("prefix", ["refiner", "offline_tracker"])
def test_both_names_of_the_refiner_of_dvis_are_known(prefix):
    names = ["transformer_ffn_layers.3.linear2.bias", "conv_short_aggregate_layers.1.2.weight", "activation_proj.bias"]
    expected = ["layers.3.feed_forward.feed_forward.fc2.bias", "layers.1.conv2.weight", "frame_weight.bias"]
    released = {f"{prefix}.{name}": torch.zeros(1) for name in names}
    converted, report = convert_state_dict(released, "dvis")
    assert list(converted) == [f"refiner.{name}" for name in expected]
    assert not report.unknown


def test_compensator_and_interaction_of_spvis_are_unknown_to_dvis():
    released = {"compensator.ffn.norm.bias": torch.zeros(1), "interaction.mask_embed.2.bias": torch.zeros(1)}
    converted, _ = convert_state_dict(released, "spvis")
    assert list(converted) == ["refiner.compensator.feed_forward.layer_norm.bias", "refiner.mask_embedder.2.bias"]
    assert convert_state_dict(released, "dvis")[1].unknown == list(released)


def test_online_spvis_has_the_sizes_of_its_tracker_and_the_released_behaviour():
    config = infer_spvis_config(meta_state_dict(spvis_names(ResNet())))
    assert (config.tracker_layers, config.tracker_dim_feedforward) == (TINY.video_layers, TINY.feed_forward)
    assert (config.filter, config.alignment, config.filter_residual) == ("disturbance", "released", "released")
    assert infer_spvis_config(meta_state_dict(spvis_names(ResNet())), alignment="corrected").alignment == "corrected"


def test_online_dvis_has_the_referring_filter_and_the_released_behaviour():
    config = infer_dvis_config(meta_state_dict(dvis_names(ResNet())))
    assert (config.filter, config.alignment, config.filter_residual) == ("referring", "released", "identity")


@pytest.mark.parametrize(("compensator", "joint"), [(COMPENSATOR, None), ({}, "interaction_only")])
def test_offline_spvis_has_the_layers_of_its_interaction(compensator, joint):
    online = infer_spvis_config(meta_state_dict(spvis_names(ResNet())))
    config = infer_spvis_config(meta_state_dict(spvis_names(ResNet()) | INTERACTION | compensator))
    assert (config.refiner, config.refiner_layers) == ("spvis", 2)
    assert config.joint == (joint or online.joint)


def test_offline_dvis_has_the_layers_of_its_refiner():
    config = infer_dvis_config(meta_state_dict(dvis_names(ResNet()) | REFINER))
    assert (config.refiner, config.refiner_layers) == ("dvis", 2)


@pytest.mark.parametrize(
    ("infer_config", "released", "message"),
    [
        (infer_spvis_config, {}, r"has no tracker \(`tracker\.\*`\), so it is not SPVIS\."),
        (infer_dvis_config, {}, r"has no tracker \(`tracker\.\*`\), so it is not DVIS\."),
        (infer_spvis_config, TRACKER, "has no disturbance filter, so it is not SPVIS"),
        (
            infer_dvis_config,
            TRACKER | {FILTER_FEED_FORWARD: torch.zeros(16, 8)},
            "has a disturbance filter, so it is not DVIS",
        ),
    ],
)
def test_checkpoint_of_another_system_is_an_error(infer_config, released, message):
    with pytest.raises(ValueError, match=message):
        infer_config(released)
