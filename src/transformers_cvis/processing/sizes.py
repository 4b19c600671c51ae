# SPDX-License-Identifier: Apache-2.0
"""Sizes of frames, of network inputs and of mask logits: the only resize formula of data and processing."""

from collections.abc import Sequence

from ..geometry import SIZE_DIVISOR


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Return height and width times `scale`, rounded half up, at least one pixel each."""
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resized_size(height: int, width: int, short_side: int, max_size: int | None = None) -> tuple[int, int]:
    """Return the size of a frame that is resized by its short side.

    Args:
        height (`int`): height of the frame, in pixels.
        width (`int`): width of the frame, in pixels.
        short_side (`int`): length of the short side after the resize, in pixels.
        max_size (`int`, *optional*): limit of the long side. A frame that would exceed it is resized by its long side.

    Returns:
        `tuple[int, int]`: height and width after the resize. The aspect ratio is kept up to rounding.
    """
    scale = short_side / min(height, width)
    if max_size:
        scale = min(scale, max_size / max(height, width))
    return scaled_size(height, width, scale)


def padded_size(size: Sequence[int], divisor: int = SIZE_DIVISOR) -> tuple[int, int]:
    """Return height and width, each rounded up to a multiple of `divisor`."""
    height, width = (-(-length // divisor) * divisor for length in size)
    return height, width
