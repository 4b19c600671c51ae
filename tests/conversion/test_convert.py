"""Tensors of released state dicts under the names of the models, and the report on them."""

import pytest
import torch

from tests.support.detectron2_names import (
    SYSTEM_NAMES,
    ResNet,
    Swin,
    imagenet_names,
    mask2former_names,
    old_names,
    random_state_dict,
)
from transformers_cvis.conversion import SYSTEMS, ConversionReport, convert_state_dict

BACKBONES = {"resnet": ResNet(), "swin": Swin()}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("system", SYSTEM_NAMES)
def test_every_name_has_its_place(system, backbone):
    released = random_state_dict(SYSTEM_NAMES[system](BACKBONES[backbone]))
    converted, report = convert_state_dict(released, system)
    assert not report.unknown
    assert set(report.mapped) | set(report.ignored) == set(released)
    model = SYSTEMS[system].model_class(SYSTEMS[system].infer_config(released))
    missing, unexpected = model.load_state_dict(converted, strict=False)
    assert not unexpected
    assert all("swin.layernorm" in name or name == "criterion.empty_weight" for name in missing)


def test_packed_rows_are_split_in_order():
    released = random_state_dict(mask2former_names(Swin()))
    converted, report = convert_state_dict(released, "mask2former")
    name = "sem_seg_head.predictor.transformer_self_attention_layers.1.self_attn.in_proj_weight"
    parts = [converted[target] for target in report.mapped[name]]
    assert [target.split(".")[-2] for target in report.mapped[name]] == ["q_proj", "k_proj", "v_proj"]
    assert torch.equal(torch.cat(parts), released[name])
    name = "backbone.layers.1.blocks.0.attn.qkv.bias"
    assert torch.equal(torch.cat([converted[target] for target in report.mapped[name]]), released[name])
    cross = "sem_seg_head.predictor.transformer_cross_attention_layers.1.multihead_attn.in_proj_weight"
    assert report.mapped[cross] == ("model.transformer_module.decoder.layers.1.cross_attn.in_proj_weight",)


def test_names_of_old_files():
    released = random_state_dict(mask2former_names(ResNet()))
    names = old_names(released)
    assert sum(name != old for name, old in names.items()) > 50
    converted, report = convert_state_dict({names[name]: tensor for name, tensor in released.items()}, "mask2former")
    expected, _ = convert_state_dict(released, "mask2former")
    assert not report.unknown and "sem_seg_head.predictor.static_query.weight" in report.mapped
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in expected)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_names_of_a_backbone_alone(backbone):
    released = random_state_dict(imagenet_names(BACKBONES[backbone]))
    converted, report = convert_state_dict(released, "mask2former")
    assert not report.unknown
    assert set(report.ignored.values()) <= {
        "part of the ImageNet classifier",
        "computed from the window size",
        "computed from the input size",
    }
    whole, _ = convert_state_dict(random_state_dict(mask2former_names(BACKBONES[backbone])), "mask2former")
    backbone_names = {name for name in whole if ".encoder." in name and "pixel_level_module.encoder" in name}
    fresh = {name for name in backbone_names if "hidden_states_norms" in name}  # of the maps; not part of the file
    assert set(converted) == backbone_names - fresh


def test_unknown_names_are_reported():
    _, report = convert_state_dict({"sem_seg_head.predictor.surprise.weight": torch.zeros(1)}, "mask2former")
    assert report.unknown == ["sem_seg_head.predictor.surprise.weight"]
    assert "Unknown, with no place in the model:\n  sem_seg_head.predictor.surprise.weight" in str(report)


def test_the_report_groups_names():
    report = ConversionReport(
        mapped={"a": ("b",), "c": ("d", "e")},
        ignored={f"layers.{layer}.mask": "computed" for layer in range(5)} | {"empty": "of the loss"},
        unknown=[f"head{number}.weight" for number in range(10)],
        fresh=["norm.0.weight", "norm.1.weight"],
        notes=["The model is small."],
    )
    assert str(report).splitlines() == [
        "The model is small.",
        "2 tensors mapped, 6 ignored, 10 unknown; 2 weights start anew.",
        "Ignored, computed:",
        "  layers.*.mask (5)",
        "Ignored, of the loss:",
        "  empty",
        "Unknown, with no place in the model:",
        *(f"  head{number}.weight" for number in range(8)),
        "  and 2 more",
        "Not in the checkpoint, starting anew:",
        "  norm.*.weight (2)",
    ]


def test_unknown_system_is_an_error():
    with pytest.raises(ValueError, match="no converter for 'masktrack'; there are .*mask2former"):
        convert_state_dict({}, "masktrack")
