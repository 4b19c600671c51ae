# SPDX-License-Identifier: Apache-2.0
"""Weights of Mask2Former in the frame detector."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from tests.support.helpers import BACKBONES, tiny_detector_config
from tests.support.tiny_detector import frames, tiny_model
from transformers_cvis.modeling.frame_detector import FrameDetector, FrameDetectorConfig


def mask2former(backbone: str, **changes) -> Mask2FormerForUniversalSegmentation:
    torch.manual_seed(0)
    settings = tiny_detector_config(num_labels=4, backbone_config=BACKBONES[backbone], **changes).to_dict()
    known = set(Mask2FormerConfig().to_dict()) - {"model_type", "architectures"}
    model = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(**{name: value for name, value in settings.items() if name in known})
    )
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_()
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.double().eval()


@pytest.mark.parametrize(
    ("backbone", "changes"),
    [
        ("basic", {}),
        ("bottleneck", {}),
        ("swin", {}),
        ("basic", {"hidden_dim": 64, "mask_feature_size": 48, "num_attention_heads": 4}),
        ("basic", {"enforce_input_projection": True}),
    ],
)
@torch.no_grad()
def test_loads_and_equals_mask2former(backbone, changes, tmp_path, caplog, monkeypatch):
    peer = mask2former(backbone, **changes)
    has_projections = "hidden_dim" in changes or "enforce_input_projection" in changes
    if has_projections and isinstance(peer.model.transformer_module.input_projections, list):
        pytest.skip("this version of transformers does not save these weights")
    peer.save_pretrained(tmp_path)
    _add_keys_of_hub_files(tmp_path / "config.json")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.clear()
    model, info = FrameDetector.from_pretrained(tmp_path, output_loading_info=True)
    assert not caplog.records
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert type(model.config) is FrameDetectorConfig
    assert model.config.num_labels == 4

    pixel_values = frames(dtype=torch.float64)
    expected = peer(pixel_values, output_auxiliary_logits=True)
    actual = model(pixel_values, output_predictions=True)
    # Older versions of transformers compute their position embeddings in float32.
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(actual.class_queries_logits, expected.class_queries_logits, **close)
    torch.testing.assert_close(actual.masks_queries_logits, expected.masks_queries_logits, **close)
    for ours, theirs in zip(actual.predictions[:-1], expected.auxiliary_logits, strict=True):
        torch.testing.assert_close(ours.class_logits, theirs["class_queries_logits"], **close)
        masks = torch.einsum("nqc,nchw->nqhw", ours.mask_embeddings, actual.mask_features)
        torch.testing.assert_close(masks, theirs["masks_queries_logits"], **close)


def _add_keys_of_hub_files(path):
    """Add the old fields of Mask2Former's `config.json` files on the Hub."""
    config = json.loads(path.read_text())
    config |= {"backbone": None, "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone_kwargs": None}
    config |= {"num_hidden_layers": config["decoder_layers"], "torch_dtype": "float64"}
    path.write_text(json.dumps(config))


def test_loads_swin_weights_of_the_hub(tmp_path):
    """Checkpoints on the Hub have the names that Swin had before version 5 of transformers."""
    peer = mask2former("swin")
    peer.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    renamed = {
        name.replace("encoder.swin.", "encoder.")
        .replace("attention.q_proj", "attention.self.query")
        .replace("attention.k_proj", "attention.self.key")
        .replace("attention.v_proj", "attention.self.value")
        .replace("attention.o_proj", "attention.output.dense")
        .replace("attention.relative_position_bias.", "attention.self.")
        .replace("mlp.fc1", "intermediate.dense")
        .replace("mlp.fc2", "output.dense"): tensor
        for name, tensor in load_file(path).items()
        if ".swin.layernorm." not in name
    }
    save_file(renamed, path, metadata={"format": "pt"})
    model, info = FrameDetector.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    expected = peer.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_another_number_of_classes_is_an_error(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"class_predictor\.weight: checkpoint \(5, 32\), model \(8, 32\)"):
        FrameDetector.from_pretrained(tmp_path, num_labels=7)
    model = FrameDetector.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert model.class_predictor.out_features == 8
