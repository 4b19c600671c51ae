# SPDX-License-Identifier: Apache-2.0
"""Interface of a model that processing, evaluation and the pipeline can run."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch


class VideoModel(Protocol):
    """A video instance segmentation model: a `torch.nn.Module` with a `stream` of outputs.

    Attributes:
        training (`bool`): whether the model is in training mode. A segmentation runs in evaluation mode and restores
            this afterwards.
    """

    training: bool

    @property
    def config(self) -> Any:
        """Configuration with `id2label` (`dict[int, str]`), and with `clip_length` (`int`) if the model has one."""
        ...

    @property
    def is_online(self) -> bool:
        """Whether the model answers a clip without the frames that follow it."""
        ...

    @property
    def device(self) -> torch.device:
        """Device that the model takes its clips on."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the clips."""
        ...

    def stream(self, clips: Iterable[torch.Tensor]) -> Iterator[Any]:
        """Segment videos of one size clip by clip.

        Args:
            clips (`Iterable[torch.Tensor]`): consecutive clips `(B, T, 3, H, W)` of the same videos, normalised and
                padded.

        Yields:
            One output per clip, in order, with `class_queries_logits` `(B, Q, K + 1)`, `masks_queries_logits`
            `(B, Q, T, H / 4, W / 4)` and, unless the default of [`TrackAccumulator`] is right, `score_rule`.
        """
        ...

    def train(self, mode: bool = True) -> Any:
        """Switch to training mode, or with `mode=False` to evaluation mode."""
        ...

    def eval(self) -> Any:
        """Switch to evaluation mode."""
        ...
