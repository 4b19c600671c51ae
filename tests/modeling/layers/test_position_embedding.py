# SPDX-License-Identifier: Apache-2.0
"""Sine positions against their formula, entry by entry."""

import math

import torch

from transformers_cvis.modeling.layers.position_embedding import sine_frame_embedding, sine_position_embedding


def wave(place: int, size: int, feature: int, num_features: int) -> float:
    angle = place / (size + 1e-6) * 2 * math.pi / 10000 ** (2 * (feature // 2) / num_features)
    return math.cos(angle) if feature % 2 else math.sin(angle)


def test_clips_have_a_third_dimension_over_all_channels():
    num_frames, height, width, channels = 3, 2, 4, 8
    settings = {"device": torch.device("cpu"), "dtype": torch.float64}
    frames = sine_frame_embedding(num_frames, channels, **settings)
    embedding = sine_position_embedding(height, width, channels, **settings) + frames[:, None]
    embedding = embedding.unflatten(1, (height, width))
    for frame in range(num_frames):
        for row in range(height):
            for column in range(width):
                for channel in range(channels):
                    half = channels // 2
                    plane = wave(row + 1, height, channel, half)
                    if channel >= half:
                        plane = wave(column + 1, width, channel - half, half)
                    expected = plane + wave(frame + 1, num_frames, channel, channels)
                    assert abs(embedding[frame, row, column, channel].item() - expected) < 1e-12


def test_computed_in_float32_at_least():
    half = sine_frame_embedding(7, 16, device=torch.device("cpu"), dtype=torch.float16)
    full = sine_frame_embedding(7, 16, device=torch.device("cpu"), dtype=torch.float32)
    assert torch.equal(half, full.half())
