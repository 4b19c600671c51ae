"""Configurations read off shapes: tiny ones, and those of published networks, without their memory."""

from dataclasses import replace

import pytest
import torch

from tests.support.detectron2_names import (
    PUBLISHED,
    PUBLISHED_BACKBONES,
    SYSTEM_NAMES,
    TINY,
    ResNet,
    Swin,
    hvpl_names,
    imagenet_names,
    mask2former_names,
    meta_state_dict,
)
from transformers_cvis.conversion import SYSTEMS, convert_state_dict
from transformers_cvis.conversion.hvpl_configurations import RELEASED, infer_hvpl_config
from transformers_cvis.conversion.released.mask2former import infer_backbone_config, infer_frame_detector_config

# Millions of parameters of Mask2Former with each backbone, as published (table 1 of its article).
MILLIONS = {"R50": 44, "R101": 63, "Swin-T": 47, "Swin-S": 69, "Swin-B": 107, "Swin-L": 216}


@pytest.mark.parametrize("name", PUBLISHED_BACKBONES)
def test_published_backbones(name):
    backbone = PUBLISHED_BACKBONES[name]
    config = infer_backbone_config(meta_state_dict(mask2former_names(backbone, PUBLISHED)))
    assert tuple(config.depths) == backbone.depths
    if isinstance(backbone, ResNet):
        assert (config.layer_type, config.embedding_size) == ("bottleneck", 64)
        assert tuple(config.hidden_sizes) == backbone.channels and not config.downsample_in_bottleneck
    else:
        assert (config.embed_dim, config.window_size, config.patch_size) == (backbone.width, backbone.window, 4)
        assert tuple(config.num_heads) == backbone.heads and config.mlp_ratio == 4 and config.qkv_bias


@pytest.mark.parametrize("name", PUBLISHED_BACKBONES)
def test_published_mask2former_networks(name):
    sizes = PUBLISHED if name != "Swin-L" else replace(PUBLISHED, queries=200)
    released = meta_state_dict(mask2former_names(PUBLISHED_BACKBONES[name], sizes))
    config = infer_frame_detector_config(released)
    assert (config.num_labels, config.num_queries, config.num_attention_heads) == (80, sizes.queries, 8)
    assert (config.encoder_layers, config.decoder_layers) == (6, 10)
    assert (config.encoder_feedforward_dim, config.dim_feedforward, config.hidden_dim) == (1024, 2048, 256)
    converted, _ = convert_state_dict(released, "mask2former")
    with torch.device("meta"):
        model = SYSTEMS["minvis"].model_class(SYSTEMS["minvis"].infer_config(released))
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in converted.items()
    }
    numbers = [tensor.numel() for key, tensor in converted.items() if "num_batches_tracked" not in key]
    assert round(sum(numbers) / 1e6) == MILLIONS[name]


@pytest.mark.parametrize("name", ["R101", "Swin-L"])
@pytest.mark.parametrize("system", ["vita", "genvis", "hvpl", "spvis", "dvis"])
def test_published_video_networks(system, name):
    released = meta_state_dict(SYSTEM_NAMES[system](PUBLISHED_BACKBONES[name], PUBLISHED))
    converted, report = convert_state_dict(released, system)
    assert not report.unknown
    with torch.device("meta"):
        model = SYSTEMS[system].model_class(SYSTEMS[system].infer_config(released))
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in converted.items()
    }


def test_tiny_sizes():
    for backbone in (ResNet(), Swin()):
        config = infer_frame_detector_config(meta_state_dict(mask2former_names(backbone)))
        assert (config.num_labels, config.num_queries, config.hidden_dim) == (TINY.classes, TINY.queries, TINY.width)
        assert (config.encoder_layers, config.decoder_layers, config.num_attention_heads) == (2, 4, 2)
        assert (config.encoder_feedforward_dim, config.dim_feedforward) == (24, 40)
        assert tuple(config.backbone_config.depths) == backbone.depths


def test_tasks_and_prompts_of_hvpl():
    config = infer_hvpl_config(meta_state_dict(hvpl_names(ResNet())), calibration_deltas=[0.4, 0.5])
    assert config.task_class_counts == [3, 2, 1] and config.task_prompt_counts == [3, 3] and config.deep_class_head
    assert {name: getattr(config, name) for name in RELEASED} == RELEASED
    assert config.calibration_deltas == [0.4, 0.5] and config.num_labels == 6


def test_a_backbone_alone_gets_the_published_head():
    released = meta_state_dict({f"backbone.{name}": shape for name, shape in imagenet_names(Swin()).items()})
    config = infer_frame_detector_config(released, id2label={0: "cat"})
    assert tuple(config.backbone_config.depths) == Swin().depths and config.num_labels == 1
    assert (config.hidden_dim, config.num_queries, config.decoder_layers) == (256, 100, 10)


def test_a_backbone_of_another_kind():
    with pytest.raises(ValueError, match="neither a ResNet .* nor a Swin"):
        infer_backbone_config(meta_state_dict({"backbone.features.0.weight": (8, 3, 3, 3)}))
