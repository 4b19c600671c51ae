# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with Swin: converted models against the arithmetic of the article, and against weights set by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoImageProcessor, Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from tests.support.detectron2_names import Shapes, Swin, genvis_names, mask2former_names, random_state_dict, vita_names
from tests.support.hand_mapping import fill_mask2former, fill_video_head
from tests.support.swin_reference import swin_maps
from transformers_cvis import (
    AutoModelForVideoInstanceSegmentation,
    FrameDetector,
    GenVisConfig,
    GenVisForVideoInstanceSegmentation,
    MinVisForVideoInstanceSegmentation,
    VitaConfig,
    VitaForVideoInstanceSegmentation,
)
from transformers_cvis.conversion import convert_checkpoint

STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONE = Swin(width=8, depths=(1, 2, 2, 2), heads=(1, 2, 2, 4), window=4)
# The last feature map has 2 x 3 positions, less than a window, or 6 x 11, which no window divides.
SIZES = [(64, 96), (192, 352)]

# The same sizes as configurations.
DETECTOR = {
    "backbone_config": SwinConfig(
        embed_dim=8,
        depths=[1, 2, 2, 2],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        mlp_ratio=4.0,
        drop_path_rate=0.0,
        out_features=STAGES,
    ).to_dict(),
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 24,
    "encoder_layers": 2,
    "dim_feedforward": 40,
    "decoder_layers": 4,
    "num_attention_heads": 2,
    "num_queries": 6,
}
VIDEO = {
    "detector_config": DETECTOR,
    "num_queries": 4,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "dim_feedforward": 40,
    "num_attention_heads": 2,
    "num_labels": 5,
}


def convert(names: Shapes, system: str, folder: Path, **arguments: Any) -> tuple[dict[str, torch.Tensor], str]:
    released = random_state_dict(names)
    torch.save({"model": released}, folder / "model_final.pth")
    convert_checkpoint(folder / "model_final.pth", folder / "converted", system, **arguments)
    return released, str(folder / "converted")


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory) -> tuple[dict[str, torch.Tensor], str]:
    return convert(mask2former_names(BACKBONE), "mask2former", tmp_path_factory.mktemp("mask2former"))


def pixels(height: int, width: int, num_frames: int = 2) -> torch.Tensor:
    return torch.randn(num_frames, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_converted_swin_equals_the_arithmetic_of_the_article(mask2former, size):
    released, folder = mask2former
    released = {name: tensor.double() for name, tensor in released.items()}
    backbone = FrameDetector.from_pretrained(folder).double().eval().model.pixel_level_module.encoder
    found = backbone(pixels(*size).double()).feature_maps
    expected = swin_maps(pixels(*size).double(), released, BACKBONE.depths)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_converted_mask2former_equals_weights_set_by_hand(mask2former, size):
    released, folder = mask2former
    by_hand = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**DETECTOR, num_labels=5)).double().eval()
    fill_mask2former(by_hand, released)
    expected = by_hand(pixels(*size).double())

    theirs = Mask2FormerForUniversalSegmentation.from_pretrained(folder).double()(pixels(*size).double())
    torch.testing.assert_close(theirs.class_queries_logits, expected.class_queries_logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(theirs.masks_queries_logits, expected.masks_queries_logits, rtol=0, atol=1e-12)
    # The frame detector computes position codes in float32.
    detected = FrameDetector.from_pretrained(folder).double()(pixels(*size).double(), output_predictions=True)
    torch.testing.assert_close(detected.class_queries_logits, expected.class_queries_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(detected.masks_queries_logits, expected.masks_queries_logits, rtol=0, atol=1e-5)


def test_converted_mask2former_loads_for_images_and_videos(mask2former):
    _, folder = mask2former
    for model_class in (
        Mask2FormerForUniversalSegmentation,
        FrameDetector,
        MinVisForVideoInstanceSegmentation,
        AutoModelForVideoInstanceSegmentation,
    ):
        _, info = model_class.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), model_class
    assert AutoImageProcessor.from_pretrained(folder).size["shortest_edge"] == 800


@pytest.mark.parametrize(
    ("system", "names", "model_class", "config"),
    [
        ("vita", vita_names, VitaForVideoInstanceSegmentation, VitaConfig(**VIDEO, encoder_window_size=2)),
        ("genvis", genvis_names, GenVisForVideoInstanceSegmentation, GenVisConfig(**VIDEO)),
    ],
)
@torch.no_grad()
def test_converted_video_model_equals_weights_set_by_hand(system, names, model_class, config, tmp_path):
    settings = {"encoder_window_size": config.encoder_window_size}
    released, folder = convert(names(BACKBONE), system, tmp_path, settings=settings)
    by_hand = model_class(config).double().eval()
    fill_mask2former(by_hand.detector, released)
    fill_video_head(by_hand.video_head, released)
    model = AutoModelForVideoInstanceSegmentation.from_pretrained(folder).double()
    assert type(model) is model_class
    assert all(torch.equal(tensor, by_hand.state_dict()[name]) for name, tensor in model.state_dict().items())
    clips = [
        pixels(64, 96, 3)[None].double(),
        pixels(64, 96, 2)[None].double(),
    ]  # GenVIS reads its memory in the second
    for ours, theirs in zip(model.stream(clips), by_hand.stream(clips), strict=True):
        torch.testing.assert_close(ours.class_queries_logits, theirs.class_queries_logits, rtol=0, atol=1e-10)
        torch.testing.assert_close(ours.masks_queries_logits, theirs.masks_queries_logits, rtol=0, atol=1e-10)
