# SPDX-License-Identifier: Apache-2.0
"""The table of systems: each entry, and entries from outside the package."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from tests.support.detectron2_names import (
    PUBLISHED,
    PUBLISHED_BACKBONES,
    SYSTEM_NAMES,
    ResNet,
    Swin,
    mask2former_names,
    meta_state_dict,
    random_state_dict,
)
from tests.support.released_checkpoints import load_model, save_checkpoint
from transformers_cvis.conversion import (
    CONVERSIONS,
    Conversion,
    Ignore,
    convert_checkpoint,
    convert_state_dict,
    register_conversion,
)
from transformers_cvis.processing import CvisVideoProcessor

BACKBONES = {"resnet": ResNet(), "swin": Swin()}


def toy_rules() -> list:
    return [Ignore(r"toy\.version", "a number"), *CONVERSIONS["minvis"].rules()]


@pytest.fixture
def toy() -> Iterator[Conversion]:
    """A conversion that is not in the table; the test may add it."""
    yield replace(CONVERSIONS["minvis"], rules=toy_rules, short_sides={"swin": 64})
    CONVERSIONS.pop("toy", None)


def test_every_system_has_names_of_a_tiny_checkpoint_to_test():
    assert SYSTEM_NAMES.keys() == CONVERSIONS.keys()


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("system", SYSTEM_NAMES)
def test_every_released_name_and_every_weight_has_its_counterpart(system, backbone):
    released = random_state_dict(SYSTEM_NAMES[system](BACKBONES[backbone]))
    converted, report = convert_state_dict(released, system)
    assert not report.unknown
    assert set(report.mapped) | set(report.ignored) == set(released)
    model = CONVERSIONS[system].model_class(CONVERSIONS[system].infer_config(released))
    missing, unexpected = model.load_state_dict(converted, strict=False)
    assert not unexpected
    assert all("swin.layernorm" in name or name == "criterion.empty_weight" for name in missing)


@pytest.mark.parametrize("name", ["R101", "Swin-L"])
@pytest.mark.parametrize("system", ["vita", "genvis", "hvpl", "spvis", "dvis"])
def test_published_video_networks_have_the_shapes_of_their_models(system, name):
    released = meta_state_dict(SYSTEM_NAMES[system](PUBLISHED_BACKBONES[name], PUBLISHED))
    converted, report = convert_state_dict(released, system)
    assert not report.unknown
    with torch.device("meta"):
        model = CONVERSIONS[system].model_class(CONVERSIONS[system].infer_config(released))
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in converted.items()
    }


def test_registered_system_converts_its_checkpoints(toy, tmp_path):
    register_conversion("toy", toy)
    path = save_checkpoint(tmp_path, mask2former_names(Swin()) | {"toy.version": (1,)})
    report = convert_checkpoint(path, tmp_path / "out", "toy")
    assert report.ignored["toy.version"] == "a number"
    assert load_model(tmp_path / "out").config.model_type == "minvis"
    assert CvisVideoProcessor.from_pretrained(tmp_path / "out").size["shortest_edge"] == 64


def test_registered_system_is_suggested_for_its_checkpoints(toy, tmp_path):
    register_conversion("toy", toy)
    path = save_checkpoint(tmp_path, mask2former_names(Swin()) | {"toy.version": (1,)})
    with pytest.raises(ValueError, match=r"1 of \d+ tensors are unknown .* A complete match is --system toy"):
        convert_checkpoint(path, tmp_path / "out", "mask2former")


def test_backbone_without_a_published_short_side_needs_one(toy, tmp_path):
    register_conversion("toy", toy)
    path = save_checkpoint(tmp_path, mask2former_names(ResNet()))
    with pytest.raises(ValueError, match="not known for the backbone resnet: give it with --short-side"):
        convert_checkpoint(path, tmp_path / "out", "toy")
    assert not (tmp_path / "out").exists()
    convert_checkpoint(path, tmp_path / "out", "toy", short_side=96)
    assert CvisVideoProcessor.from_pretrained(tmp_path / "out").size["shortest_edge"] == 96


def test_registering_a_name_twice_is_an_error_unless_allowed(toy):
    register_conversion("toy", toy)
    with pytest.raises(ValueError, match="A conversion for 'toy' exists already: choose another name, or pass"):
        register_conversion("toy", toy)
    other = replace(toy, note="Another one.")
    register_conversion("toy", other, exist_ok=True)
    assert CONVERSIONS["toy"] is other
