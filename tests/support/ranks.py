# SPDX-License-Identifier: Apache-2.0
"""Compute losses of two processes in one process."""

from collections.abc import Callable

import torch


def mean_over_two_ranks(monkeypatch, one_rank: Callable[[int], dict]) -> dict[str, torch.Tensor]:
    """Return the mean of the losses of two processes, whose gradient is the average of theirs.

    Args:
        one_rank: returns the losses of a rank's part of the batch.
    """
    reduced = [[], []]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda counts, rank=rank: reduced[rank].append(counts))
        one_rank(rank)
    sums = [one + other for one, other in zip(*[[count.clone() for count in rank] for rank in reduced], strict=True)]
    losses = []
    for rank in (0, 1):
        queue = iter(sums)
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda counts, queue=queue: counts.copy_(next(queue)))
        losses.append(one_rank(rank))
    return {name: (losses[0][name] + losses[1][name]) / 2 for name in losses[0]}
