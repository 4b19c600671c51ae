# SPDX-License-Identifier: Apache-2.0
"""Tiny videos with labels, and short names for results of a model."""

import torch

LABELS = {0: "disk", 1: "star", 2: "ring"}


def video_batch(num_frames: int = 4, height: int = 64, width: int = 96, batch_size: int = 2) -> torch.Tensor:
    """Return normalised videos (B, T, 3, H, W)."""
    return torch.randn(batch_size, num_frames, 3, height, width, generator=torch.Generator().manual_seed(1))


def video_labels(num_frames: int = 4, height: int = 64, width: int = 96, batch_size: int = 2) -> list[dict]:
    """Return labels of one moving object that stays and one that appears in the middle, different in each video."""
    labels = []
    for video in range(batch_size):
        masks = torch.zeros(2, num_frames, height, width, dtype=torch.bool)
        for frame in range(num_frames):
            left = 4 * frame + 8 * video
            masks[0, frame, 8:32, left : left + 24] = True
            if frame >= num_frames // 2:
                masks[1, frame, 36:60, 40 - left : 64 - left] = True
        ids = torch.where(masks.any(dim=(2, 3)), torch.tensor([[3], [7]]), -1)
        labels.append({"class_labels": torch.tensor([video, 2]), "ids": ids, "masks": masks})
    return labels


def loss_of(model, seed: int = 0) -> torch.Tensor:
    """Return the loss of one training step with fixed random points."""
    torch.manual_seed(seed)
    return model.train()(video_batch(), labels=video_labels()).loss


def predictions(output) -> tuple[torch.Tensor, torch.Tensor]:
    return output.class_queries_logits, output.masks_queries_logits
