# SPDX-License-Identifier: Apache-2.0
"""Points at which masks are compared: bilinear sampling and PointRend's importance sampling."""

import numpy as np
import torch
from torch import nn


def sample_points(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Sample maps bilinearly; pixel centres are half-integers, and values outside are zero.

    Args:
        maps: `(N, C, h, w)`, floating point.
        points: `(N, points, 2)`, (x, y) in [0, 1] of the width and height of the map.

    Returns:
        `(N, C, points)`; differentiable in `maps`.
    """
    grid = (2 * points - 1).unsqueeze(2)  # (N, points, 1, 2)
    return nn.functional.grid_sample(maps, grid, align_corners=False).squeeze(3)


def select_uncertain_points(
    mask_logits: torch.Tensor, candidates: torch.Tensor, extra: torch.Tensor, num_uncertain: int
) -> torch.Tensor:
    """Select the candidates where a mask is least certain (smallest |logit|), and append the `extra` points.

    Args:
        mask_logits: `(N, D, h, w)`: D predictions of each of N masks, which share their candidates.
        candidates: `(N, candidates, 2)`, (x, y) in [0, 1].
        extra: `(N, D, extra, 2)`, kept as they are.
        num_uncertain: Candidates to select.

    Returns:
        `(N, D, num_uncertain + extra, 2)`. The order of the selected candidates is unspecified.

    Source: Kirillov et al., PointRend, section 3.1 (training).
    """
    uncertainty = sample_points(mask_logits, candidates).abs_()  # (N, D, candidates)
    chosen = _smallest(uncertainty, num_uncertain).unsqueeze(3)
    selected = candidates.unsqueeze(1).expand(-1, mask_logits.shape[1], -1, -1).gather(2, chosen.expand(-1, -1, -1, 2))
    return torch.cat([selected, extra], dim=2)


def _smallest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Return the indices of the `count` smallest entries along the last axis, in any order."""
    if values.device.type == "cpu":  # on the CPU, NumPy's selection takes a third of the time of PyTorch's
        return torch.from_numpy(np.argpartition(values.numpy(), count - 1, axis=-1)[..., :count])
    return values.topk(count, dim=-1, largest=False, sorted=False).indices


class PointSampler:
    """Draw the points of the matching cost and of the mask losses from PyTorch's global generator.

    Args:
        num_points: Points of a mask in a frame.
        oversample_ratio: Candidates per point of the mask losses.
        importance_sample_ratio: Share of the points taken from the candidates, where the prediction is least certain.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self, num_points: int = 12544, oversample_ratio: float = 3.0, importance_sample_ratio: float = 0.75
    ) -> None:
        if num_points < 1 or oversample_ratio < 1 or not 0 <= importance_sample_ratio <= 1:
            raise ValueError(
                "Points need num_points >= 1, oversample_ratio >= 1 and importance_sample_ratio in [0, 1]; got "
                f"{num_points}, {oversample_ratio} and {importance_sample_ratio}."
            )
        self.num_points = num_points
        self.num_candidates = int(num_points * oversample_ratio)
        self.num_uncertain = int(num_points * importance_sample_ratio)

    def matching_points(self, num_problems: int, like: torch.Tensor) -> torch.Tensor:
        """Draw uniform points `(num_problems, num_points, 2)` of the dtype and device of `like`."""
        return torch.rand(num_problems, self.num_points, 2, dtype=like.dtype, device=like.device)

    @torch.no_grad()
    def loss_points(self, mask_logits: torch.Tensor) -> torch.Tensor:
        """Draw points `(N, D, num_points, 2)` for the predictions `mask_logits` `(N, D, h, w)`."""
        num_masks, num_sets = mask_logits.shape[:2]
        candidates = torch.rand(num_masks, self.num_candidates, 2, dtype=mask_logits.dtype, device=mask_logits.device)
        extra = torch.rand(
            num_masks,
            num_sets,
            self.num_points - self.num_uncertain,
            2,
            dtype=mask_logits.dtype,
            device=mask_logits.device,
        )
        return select_uncertain_points(mask_logits, candidates, extra, self.num_uncertain)
