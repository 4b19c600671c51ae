"""Names and configurations of SPVIS and DVIS checkpoints. That the numbers are right is shown in `tests/parity`."""

import pytest
import torch

from transformers_cvis.conversion import convert_state_dict
from transformers_cvis.conversion.spvis_configurations import infer_spvis_config


def test_former_name_of_the_refiner_of_dvis():
    names = ["transformer_ffn_layers.3.linear2.bias", "conv_short_aggregate_layers.1.2.weight", "activation_proj.bias"]
    expected = ["layers.3.feed_forward.feed_forward.fc2.bias", "layers.1.conv2.weight", "frame_weight.bias"]
    for prefix in ("refiner", "offline_tracker"):
        released = {f"{prefix}.{name}": torch.zeros(1) for name in names}
        converted, report = convert_state_dict(released, "dvis")
        assert list(converted) == [f"refiner.{name}" for name in expected] and not report.unknown


def test_parts_of_spvis_are_unknown_to_dvis():
    released = {"compensator.ffn.norm.bias": torch.zeros(1), "interaction.mask_embed.2.bias": torch.zeros(1)}
    converted, report = convert_state_dict(released, "spvis")
    assert list(converted) == ["refiner.compensator.feed_forward.layer_norm.bias", "refiner.mask_embedder.2.bias"]
    assert convert_state_dict(released, "dvis")[1].unknown == list(released)


def test_checkpoints_of_another_system():
    with pytest.raises(ValueError, match=r"has no tracker \(`tracker\.\*`\), so it is no spvis checkpoint"):
        infer_spvis_config({}, "spvis")
    tracker = {"tracker.class_embed.weight": torch.zeros(3, 8)}
    with pytest.raises(ValueError, match="tracker has no disturbance filter, so it is no spvis checkpoint"):
        infer_spvis_config(tracker, "spvis")
    tracker["tracker.transformer_cross_attention_layers.0.feedforward.0.weight"] = torch.zeros(16, 8)
    with pytest.raises(ValueError, match="tracker has a disturbance filter, so it is no dvis checkpoint"):
        infer_spvis_config(tracker, "dvis")
    with pytest.raises(ValueError, match="No tracker configuration for system 'vita'"):
        infer_spvis_config(tracker, "vita")
