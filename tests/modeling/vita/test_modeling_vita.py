# SPDX-License-Identifier: Apache-2.0
"""VITA: tests beyond the common ones."""

from typing import ClassVar

import pytest
import torch

from tests.support.helpers import tiny_detector_config
from tests.support.model_tester import VideoModelTests
from tests.support.video_data import predictions, video_batch
from transformers_cvis import VitaConfig, VitaForVideoInstanceSegmentation
from transformers_cvis.modeling.video_head.object_decoder import ObjectEncoder


class TestVita(VideoModelTests):
    model_class = VitaForVideoInstanceSegmentation
    settings: ClassVar[dict] = {"encoder_window_size": 3}

    @torch.no_grad()
    def test_streamed_video_equals_whole_video(self):
        model = self.model()
        assert not model.is_online
        pixel_values = video_batch(7, batch_size=1)
        whole = predictions(model(pixel_values))
        parts = list(model.stream(pixel_values.split(2, dim=1)))
        masks = torch.cat([part.masks_queries_logits for part in parts], dim=2)
        torch.testing.assert_close(masks, whole[1], rtol=1e-4, atol=1e-4)
        for part in parts:
            torch.testing.assert_close(part.class_queries_logits, whole[0], rtol=1e-4, atol=1e-4)

    def test_state_is_refused(self):
        with pytest.raises(ValueError, match="no `state`; use `.stream"):
            self.model()(video_batch(), state=object())


def encoder(window_size: int) -> ObjectEncoder:
    torch.manual_seed(0)
    config = VitaConfig(
        detector_config=tiny_detector_config(hidden_dim=8),
        encoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        encoder_window_size=window_size,
    )
    return ObjectEncoder(config).double().eval()


@pytest.mark.parametrize("window_size", [2, 3, 6])
@pytest.mark.parametrize("num_frames", [1, 2, 5, 6, 7, 9])
@torch.no_grad()
def test_shifted_windows_mix_only_neighbours(window_size, num_frames):
    """Only frames of the same window (layer 0), then of the shifted window (layer 1), change a frame."""
    module = encoder(window_size)
    torch.manual_seed(1)
    frames = torch.randn(2, num_frames, 4, 8, dtype=torch.float64)
    encoded = module(frames)
    assert encoded.shape == frames.shape
    assert torch.isfinite(encoded).all()
    shift = -(-window_size // 2)

    def together(first, second):
        return any(
            first // window_size == middle // window_size
            and (middle + shift) // window_size == (second + shift) // window_size
            for middle in range(num_frames)
        )

    for changed in range(num_frames):
        other = frames.clone()
        other[:, changed] += 1
        reached = (module(other) - encoded).abs().amax(dim=(0, 2, 3)) > 1e-12
        assert reached.tolist() == [together(changed, frame) for frame in range(num_frames)]


@torch.no_grad()
def test_windows_do_not_shift_in_training():
    module = encoder(window_size=2).train()
    frames = torch.randn(1, 4, 3, 8, dtype=torch.float64)
    other = frames.clone()
    other[:, 0] += 1
    reached = (module(other) - module(frames)).abs().amax(dim=(0, 2, 3)) > 1e-12
    assert reached.tolist() == [True, True, False, False]
