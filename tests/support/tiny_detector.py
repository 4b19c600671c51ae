# SPDX-License-Identifier: Apache-2.0
"""A tiny frame detector with frames and labels."""

import torch

from tests.support.helpers import tiny_detector_config
from transformers_cvis.modeling.frame_detector import FrameDetector


def tiny_model(seed: int = 0, **changes) -> FrameDetector:
    torch.manual_seed(seed)
    return FrameDetector(tiny_detector_config(**{"num_labels": 4, **changes})).eval()


def frames(num_frames: int = 2, height: int = 64, width: int = 96, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(num_frames, 3, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)


def frame_labels() -> list[dict]:
    masks = torch.zeros(2, 64, 96, dtype=torch.bool)
    masks[0, 8:40, 8:40] = True
    masks[1, 20:60, 50:90] = True
    return [
        {"class_labels": torch.tensor([1, 3]), "masks": masks},
        {"class_labels": torch.tensor([2]), "masks": masks[:1]},
    ]
