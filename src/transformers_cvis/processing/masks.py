# SPDX-License-Identifier: Apache-2.0
"""Conversion of mask logits to run lengths, without a dense mask of a whole frame.

Bilinear interpolation only averages, so where all logits around a pixel are negative the pixel is off. All work is
therefore done inside the window of the positive logits; an empty mask costs nothing.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .. import rle
from ..geometry import MASK_STRIDE
from ..precision import at_least_float32

# Windows keep this many negative logits around the positive ones: one for each of the two interpolations.
_MARGIN = 2


@dataclass
class ClipMasks:
    """Masks of queries over the frames of one clip.

    Attributes:
        segmentations (`list[list[dict | None]]`): for each query and frame a compressed RLE at the original size, or
            `None` where the mask is empty.
        probability_sum (`np.ndarray` of shape `(num_queries,)`, float64): sum of the probabilities of the pixels that
            are on, at network-input resolution, over the frames.
        pixel_count (`np.ndarray` of shape `(num_queries,)`, float64): number of those pixels.
    """

    segmentations: list[list[dict | None]]
    probability_sum: np.ndarray
    pixel_count: np.ndarray


def segment_masks(
    masks_queries_logits: torch.Tensor, input_size: tuple[int, int], original_size: tuple[int, int]
) -> ClipMasks:
    """Turn mask logits into run lengths at the video's own size.

    The logits are upsampled to the network input, the padding is cut off, the rest is resized to the original size
    (both steps bilinear, on logits) and a pixel is on where the result is positive.

    Args:
        masks_queries_logits (`torch.Tensor` of shape `(num_queries, num_frames, height, width)`): logits at a whole
            fraction (a quarter) of the padded network input.
        input_size (`tuple[int, int]`): height and width of the network input without its padding.
        original_size (`tuple[int, int]`): height and width of the video's frames.

    Returns:
        `ClipMasks`: run lengths, and sums of probabilities, of every query.

    Raises:
        ValueError: the logits cover less than `input_size`.
    """
    num_queries, num_frames, height, width = masks_queries_logits.shape
    stride = _mask_stride((height, width), input_size)
    logits = masks_queries_logits.detach()
    logits = at_least_float32(logits).cpu()

    rows_on, columns_on = (logits > 0).any(dim=3).numpy(), (logits > 0).any(dim=2).numpy()
    to_original = None
    if tuple(input_size) != tuple(original_size):
        to_original = [_LinearResize(i, o, logits.dtype) for i, o in zip(input_size, original_size, strict=True)]

    segmentations = [[None] * num_frames for _ in range(num_queries)]
    probability_sum, pixel_count = np.zeros(num_queries), np.zeros(num_queries)
    found = []  # (query, frame, counts) of every mask that is not empty
    for query, frame in np.argwhere(rows_on.any(axis=2)):
        top, bottom = _positive_range(rows_on[query, frame], height)
        left, right = _positive_range(columns_on[query, frame], width)
        window = nn.functional.interpolate(
            logits[query, frame, top:bottom, left:right][None, None],
            scale_factor=stride,
            mode="bilinear",
            align_corners=False,
        )[0, 0]
        top, left = top * stride, left * stride
        window = window[: max(0, input_size[0] - top), : max(0, input_size[1] - left)]
        window_on = window > 0
        pixels_on = int(window_on.sum())
        if pixels_on == 0:
            continue
        probability_sum[query] += float(window.sigmoid()[window_on].sum(dtype=torch.float64))
        pixel_count[query] += pixels_on
        if to_original is not None:
            window, top = to_original[0](window, top, window_on.any(dim=1), axis=0)
            window, left = to_original[1](window, left, window_on.any(dim=0), axis=1)
            window_on = window > 0
        counts = rle.window_run_lengths(window_on.numpy(), top, left, original_size)
        if counts is not None:
            found.append((query, frame, counts))

    compressed = rle.from_run_lengths([counts for _, _, counts in found], original_size)
    for (query, frame, _), segmentation in zip(found, compressed, strict=True):
        segmentations[query][frame] = segmentation
    return ClipMasks(segmentations, probability_sum, pixel_count)


def covered_share(segmentations: list[dict | None], others: list[dict | None]) -> float:
    """Return the share of a track's pixels, over all frames, that another track of the video also has.

    Args:
        segmentations (`list[dict | None]`): compressed RLE of each frame, `None` for an empty mask.
        others (`list[dict | None]`): those of the other track.
    """
    pairs = [(one, other) for one, other in zip(segmentations, others, strict=True) if one and other]
    shared = rle.intersection_areas([one for one, _ in pairs], [other for _, other in pairs]).sum()
    return float(shared) / max(1.0, float(rle.areas([one for one in segmentations if one]).sum()))


class _LinearResize:
    """One axis of a bilinear resize (pixel centres aligned, like `align_corners=False`), for a window of the axis."""

    def __init__(self, input_length: int, output_length: int, dtype: torch.dtype) -> None:
        source = (torch.arange(output_length, dtype=torch.float64) + 0.5) * (input_length / output_length) - 0.5
        source = source.clamp(min=0)
        self.lower = source.floor().long().clamp(max=input_length - 1)
        self.upper = (self.lower + 1).clamp(max=input_length - 1)
        self.weight = (source - self.lower).to(dtype)

    def __call__(self, window: torch.Tensor, offset: int, on: torch.Tensor, axis: int) -> tuple[torch.Tensor, int]:
        """Resize a window to the outputs that depend on an entry marked in `on`.

        Returns:
            The resized window, and the offset of its first output.
        """
        marked = on.nonzero()
        first, last = int(marked[0]) + offset, int(marked[-1]) + offset
        begin = int(torch.searchsorted(self.upper, first))
        end = int(torch.searchsorted(self.lower, last, right=True))
        lower = (self.lower[begin:end] - offset).clamp(min=0)
        upper = (self.upper[begin:end] - offset).clamp(max=window.shape[axis] - 1)
        weight = self.weight[begin:end]
        weight = weight[:, None] if axis == 0 else weight
        return torch.lerp(window.index_select(axis, lower), window.index_select(axis, upper), weight), begin


def _mask_stride(mask_size: tuple[int, int], input_size: tuple[int, int]) -> int:
    """Check that the logits cover the network input, and return the pixels of the input per logit."""
    stride = MASK_STRIDE
    if any(length * stride < wanted for length, wanted in zip(mask_size, input_size, strict=True)):
        raise ValueError(
            f"Mask logits of {mask_size} cover a network input of {tuple(stride * length for length in mask_size)}, "
            f"smaller than the stated input size {tuple(input_size)}."
        )
    return stride


def _positive_range(on: np.ndarray, length: int) -> tuple[int, int]:
    marked = np.flatnonzero(on)
    return max(0, int(marked[0]) - _MARGIN), min(length, int(marked[-1]) + 1 + _MARGIN)
