# SPDX-License-Identifier: Apache-2.0
"""Mask2Former checkpoints: names of old files and of backbones, and configurations of tiny and published networks."""

import pickle
from dataclasses import replace

import pytest
import torch

from tests.support.detectron2_names import (
    PUBLISHED,
    PUBLISHED_BACKBONES,
    TINY,
    ResNet,
    Swin,
    imagenet_names,
    mask2former_names,
    meta_state_dict,
    old_names,
    random_state_dict,
)
from tests.support.released_checkpoints import load_model, save_checkpoint
from transformers_cvis import FrameDetector
from transformers_cvis.conversion import CONVERSIONS, ConversionError, convert_checkpoint, convert_state_dict
from transformers_cvis.conversion.released.mask2former import infer_backbone_config, infer_frame_detector_config

BACKBONES = {"resnet": ResNet(), "swin": Swin()}
# Millions of parameters of Mask2Former with each backbone, as published (table 1 of its article).
MILLIONS = {"R50": 44, "R101": 63, "Swin-T": 47, "Swin-S": 69, "Swin-B": 107, "Swin-L": 216}


class TestNames:
    """Names of old files and of backbones."""

    def test_old_names_convert_like_new_names(self):
        released = random_state_dict(mask2former_names(ResNet()))
        names = old_names(released)
        assert sum(name != old for name, old in names.items()) > 50
        converted, report = convert_state_dict(
            {names[name]: tensor for name, tensor in released.items()}, "mask2former"
        )
        expected, _ = convert_state_dict(released, "mask2former")
        assert not report.unknown
        assert "sem_seg_head.predictor.static_query.weight" in report.mapped
        assert converted.keys() == expected.keys()
        assert all(torch.equal(converted[name], expected[name]) for name in expected)

    def test_old_model_zoo_file_becomes_a_frame_detector(self, tmp_path):
        released = random_state_dict(mask2former_names(ResNet()))
        names = old_names(released)
        content = {"model": {names[name]: tensor.numpy() for name, tensor in released.items()}}
        (tmp_path / "model_final_3c8ec9.pkl").write_bytes(pickle.dumps(content, protocol=4))
        report = convert_checkpoint(tmp_path / "model_final_3c8ec9.pkl", tmp_path / "out", "mask2former")
        assert not report.unknown
        detector = FrameDetector.from_pretrained(tmp_path / "out")
        expected = released["sem_seg_head.predictor.class_embed.weight"]
        assert torch.equal(detector.class_predictor.weight.detach(), expected)

    @pytest.mark.parametrize("backbone", BACKBONES)
    def test_backbone_alone_maps_to_the_backbone_of_the_detector(self, backbone):
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
        # ImageNet does not train the norms of Swin's feature maps
        missing = {name for name in backbone_names if "hidden_states_norms" in name}
        assert set(converted) == backbone_names - missing

    @pytest.mark.parametrize("backbone", BACKBONES)
    def test_backbone_alone_initialises_a_detector_if_classes_are_named(self, backbone, tmp_path):
        released = random_state_dict(imagenet_names(BACKBONES[backbone]))
        content = {"model": {name: tensor.numpy() for name, tensor in released.items()}, "matching_heuristics": True}
        path = tmp_path / "R-50.pkl"
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(
            ConversionError, match=r"R-50.pkl does not fit .* \d+ weights are missing .*--allow-missing"
        ):
            convert_checkpoint(path, tmp_path / "out", "mask2former")
        with pytest.raises(ConversionError, match="has no class head: give the names of the classes with --classes"):
            convert_checkpoint(path, tmp_path / "out", "mask2former", allow_missing=True)
        message = r"no video head .* A better match is --system minvis, .* or mask2former, with \d+ weights missing\."
        with pytest.raises(ConversionError, match=message):
            convert_checkpoint(path, tmp_path / "out", "vita")

        report = convert_checkpoint(path, tmp_path / "out", "mask2former", allow_missing=True, class_names=["cat"])
        encoder = "model.pixel_level_module.encoder."
        assert not report.unknown
        assert all(target.startswith(encoder) for targets in report.mapped.values() for target in targets)
        assert all("hidden_states_norms" in name for name in report.missing if name.startswith(encoder))
        assert load_model(tmp_path / "out").config.id2label == {0: "cat"}

    def test_report_on_mask2former_vis_points_to_minvis(self, tmp_path):
        path = save_checkpoint(tmp_path, mask2former_names(ResNet()))
        report = convert_checkpoint(path, tmp_path / "out", "mask2former-vis")
        assert any(note.startswith("The tensors do not show whether the model was trained on") for note in report.notes)


class TestConfigurations:
    """Configurations from shapes."""

    @pytest.mark.parametrize("name", PUBLISHED_BACKBONES)
    def test_published_backbones_are_recognised(self, name):
        backbone = PUBLISHED_BACKBONES[name]
        config = infer_backbone_config(meta_state_dict(mask2former_names(backbone, PUBLISHED)))
        assert tuple(config.depths) == backbone.depths
        if isinstance(backbone, ResNet):
            assert (config.layer_type, config.embedding_size) == ("bottleneck", 64)
            assert tuple(config.hidden_sizes) == backbone.channels
            assert not config.downsample_in_bottleneck
        else:
            assert (config.embed_dim, config.window_size, config.patch_size) == (backbone.width, backbone.window, 4)
            assert tuple(config.num_heads) == backbone.heads
            assert config.mlp_ratio == 4
            assert config.qkv_bias

    @pytest.mark.parametrize("name", PUBLISHED_BACKBONES)
    def test_published_networks_have_their_sizes_and_number_of_parameters(self, name):
        sizes = PUBLISHED if name != "Swin-L" else replace(PUBLISHED, queries=200)
        released = meta_state_dict(mask2former_names(PUBLISHED_BACKBONES[name], sizes))
        config = infer_frame_detector_config(released)
        assert (config.num_labels, config.num_queries, config.num_attention_heads) == (80, sizes.queries, 8)
        assert (config.encoder_layers, config.decoder_layers) == (6, 10)
        assert (config.encoder_feedforward_dim, config.dim_feedforward, config.hidden_dim) == (1024, 2048, 256)
        converted, _ = convert_state_dict(released, "mask2former")
        with torch.device("meta"):
            model = CONVERSIONS["minvis"].model_class(CONVERSIONS["minvis"].infer_config(released))
        assert {key: value.shape for key, value in model.state_dict().items()} == {
            key: value.shape for key, value in converted.items()
        }
        numbers = [tensor.numel() for key, tensor in converted.items() if "num_batches_tracked" not in key]
        assert round(sum(numbers) / 1e6) == MILLIONS[name]

    @pytest.mark.parametrize("backbone", BACKBONES)
    def test_tiny_network_has_its_sizes(self, backbone):
        config = infer_frame_detector_config(meta_state_dict(mask2former_names(BACKBONES[backbone])))
        assert (config.num_labels, config.num_queries, config.hidden_dim) == (TINY.classes, TINY.queries, TINY.width)
        assert (config.encoder_layers, config.decoder_layers, config.num_attention_heads) == (2, 4, 2)
        assert (config.encoder_feedforward_dim, config.dim_feedforward) == (24, 40)
        assert tuple(config.backbone_config.depths) == BACKBONES[backbone].depths

    def test_backbone_alone_gets_the_published_detector(self):
        released = meta_state_dict({f"backbone.{name}": shape for name, shape in imagenet_names(Swin()).items()})
        config = infer_frame_detector_config(released, id2label={0: "cat"})
        assert tuple(config.backbone_config.depths) == Swin().depths
        assert (config.num_labels, config.hidden_dim, config.num_queries, config.decoder_layers) == (1, 256, 100, 10)

    def test_missing_tensor_is_a_key_error_that_names_it(self):
        released = meta_state_dict(mask2former_names(ResNet()))
        name = "sem_seg_head.predictor.query_embed.weight"
        del released[name]
        with pytest.raises(KeyError, match=name):
            infer_frame_detector_config(released)

    def test_unknown_backbone_is_an_error(self):
        with pytest.raises(ValueError, match=r"neither a ResNet .* nor a Swin"):
            infer_backbone_config(meta_state_dict({"backbone.features.0.weight": (8, 3, 3, 3)}))
