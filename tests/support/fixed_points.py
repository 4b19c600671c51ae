# SPDX-License-Identifier: Apache-2.0
"""A point sampler without randomness."""

import torch


class FixedPoints:
    """Sample the same points `(P, 2)` for every mask."""

    def __init__(self):
        self.points = torch.rand(40, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def matching_points(self, num_problems, like):
        return self.points.expand(num_problems, -1, -1)

    def loss_points(self, mask_logits):
        return self.points.expand(*mask_logits.shape[:2], -1, -1)
