# SPDX-License-Identifier: Apache-2.0
"""Run-length encoded masks (RLE). Only this module knows the format and calls pycocotools to compute with it.

A mask of shape `(height, width)` is read in column-major order: the first column from top to bottom, then the second,
and so on. Its run lengths count pixels that are off, on, off, ... in turn. The first run is off, with length 0 if the
first pixel is on. An RLE is a dict:

    size    [height, width]
    counts  uncompressed: run lengths, a list of integers whose sum is height * width
            compressed: the same as a string (or bytes, as pycocotools returns it)

The string holds each run in groups of 5 bits, the lowest first. A group is the character with code 48 + its value, plus
32 if another group follows. The last group carries the sign. From the fourth run on, the number is the difference to
the run two before (`run_lengths` reads the string).

Every function that returns an RLE returns a compressed one whose counts are a string, ready for JSON.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from pycocotools import mask as mask_utils

MASKS_AT_ONCE = 255  # `area` of pycocotools counts the masks of a call in one byte

_FIRST_CODE = 48
_GROUP_BITS = 5
_GROUP_MASK = 0x1F
_SIGN_BIT = 0x10
_MORE_FOLLOWS = 0x20


def encode(mask: np.ndarray) -> dict:
    """Return the RLE of a mask.

    Args:
        mask: bool or uint8 array of shape `(height, width)`. Pixels that are not 0 are on.
    """
    return _with_text(mask_utils.encode(np.asfortranarray(mask, dtype=bool).view(np.uint8)))


def encode_or_none(mask: np.ndarray) -> dict | None:
    """Return the RLE of a mask, or None for a mask that is off everywhere.

    Args:
        mask: bool or uint8 array of shape `(height, width)`.
    """
    return encode(mask) if mask.any() else None


def empty(size: tuple[int, int]) -> dict:
    """Return the RLE of a mask that is off everywhere.

    Args:
        size: height and width of the mask.
    """
    return from_run_lengths([[size[0] * size[1]]], size)[0]


def from_run_lengths(runs: Sequence[Sequence[int]], size: tuple[int, int]) -> list[dict]:
    """Compress the run lengths of masks.

    Args:
        runs: run lengths of each mask, in column-major order, beginning with a run that is off.
        size: height and width of all the masks.
    """
    if not runs:
        return []
    height, width = size
    uncompressed = [{"size": [height, width], "counts": list(counts)} for counts in runs]
    return [_with_text(rle) for rle in mask_utils.frPyObjects(uncompressed, height, width)]


def from_polygons(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> dict:
    """Return the RLE of the union of polygons.

    Args:
        polygons: corners of each polygon, `[x1, y1, x2, y2, ...]` in pixels.
        size: height and width of the mask.
    """
    return _with_text(mask_utils.merge(mask_utils.frPyObjects(polygons, *size)))


def compress(segmentation: dict | list | None, size: tuple[int, int]) -> dict:
    """Return the RLE of a segmentation in any form.

    Args:
        segmentation: RLE of `size`, compressed or not; list of polygons; or None (or empty) for an empty mask.
        size: height and width of the mask.
    """
    if not segmentation:
        return empty(size)
    if isinstance(segmentation, list):
        return from_polygons(segmentation, size)
    if isinstance(segmentation["counts"], (str, bytes)):
        return _with_text(segmentation)
    return from_run_lengths([segmentation["counts"]], size)[0]


def decode(rle: dict) -> np.ndarray:
    """Return the mask of a compressed RLE, a bool array of shape `(height, width)`.

    Raises:
        ValueError: the counts cover more pixels than the mask has.
    """
    return mask_utils.decode(rle).astype(bool)


def decode_all(rles: Sequence[dict]) -> np.ndarray:
    """Return the masks of compressed RLEs of one size, a bool array of shape `(num_masks, height, width)`.

    Args:
        rles: at least one RLE.

    Raises:
        ValueError: `rles` is empty, or the counts of an RLE cover more pixels than its mask has.
    """
    if not rles:
        raise ValueError("No masks to decode: the list is empty. Give at least one.")
    return mask_utils.decode(rles).transpose(2, 0, 1).astype(bool)


def boxes(rles: Sequence[dict]) -> np.ndarray:
    """Return the tight boxes of compressed RLEs, x, y, width, height in pixels, float64 of shape `(num_masks, 4)`.

    The box of an empty mask is 0, 0, 0, 0.
    """
    return np.asarray(mask_utils.toBbox(list(rles)), dtype=np.float64).reshape(-1, 4)


def corner_boxes(rles: Sequence[dict | None]) -> list[tuple[float, float, float, float] | None]:
    """Return the tight boxes `(x0, y0, x1, y1)` of compressed RLEs in pixels, ends exclusive; None for None."""
    found = iter(boxes([rle for rle in rles if rle is not None]).tolist())
    corners: list[tuple[float, float, float, float] | None] = []
    for rle in rles:
        if rle is None:
            corners.append(None)
            continue
        x, y, width, height = next(found)
        corners.append((x, y, x + width, y + height))
    return corners


def areas(rles: Sequence[dict]) -> np.ndarray:
    """Return the number of pixels that are on in each compressed RLE, int64 of shape `(num_masks,)`."""
    parts = [mask_utils.area(list(part)) for part in _parts(rles)]
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts]).astype(np.int64)


def intersection_areas(rles: Sequence[dict], others: Sequence[dict]) -> np.ndarray:
    """Return the number of pixels that are on in both masks of each pair, int64 of shape `(num_masks,)`.

    Args:
        rles: compressed RLEs.
        others: as many compressed RLEs, each of the size of its partner.
    """
    return areas([mask_utils.merge([one, other], intersect=True) for one, other in zip(rles, others, strict=True)])


def ious(rles: Sequence[dict], others: Sequence[dict]) -> np.ndarray:
    """Return the intersection over union of every pair, float64 of shape `(num_masks, num_others)`.

    A pair of empty masks has 0; a pair of masks of different sizes has 0 or -1.

    Args:
        rles: compressed RLEs.
        others: compressed RLEs.
    """
    if not len(rles) or not len(others):
        return np.zeros((len(rles), len(others)))
    return mask_utils.iou(list(rles), list(others), [0] * len(others))


def run_lengths(counts: str | bytes | Sequence[int]) -> np.ndarray | None:
    """Return the run lengths of an RLE, int64 of shape `(num_runs,)`, or None if they cannot be read.

    Args:
        counts: counts of the RLE, compressed or not. Their sum is not compared with the size of the mask.
    """
    if not isinstance(counts, (str, bytes)):
        return np.asarray(counts, dtype=np.int64)
    text = counts.encode("utf-8") if isinstance(counts, str) else counts
    groups = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - _FIRST_CODE
    highest = _GROUP_MASK | _MORE_FOLLOWS
    if not groups.size or (groups < 0).any() or (groups > highest).any() or groups[-1] & _MORE_FOLLOWS:
        return None
    is_last = (groups & _MORE_FOLLOWS) == 0
    starts = np.concatenate([[0], np.flatnonzero(is_last)[:-1] + 1])
    run_of_group = np.cumsum(is_last) - is_last
    shift = _GROUP_BITS * (np.arange(groups.size) - starts[run_of_group])
    values = np.add.reduceat((groups & _GROUP_MASK) << shift, starts)
    last = np.flatnonzero(is_last)
    values -= np.where(groups[last] & _SIGN_BIT, np.int64(1) << (shift[last] + _GROUP_BITS), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def window_run_lengths(window: np.ndarray, top: int, left: int, size: tuple[int, int]) -> list[int] | None:
    """Return the run lengths of a mask that is off outside a window, without building the mask.

    Args:
        window: bool array of shape `(window_height, window_width)`.
        top: row of the mask where the window begins.
        left: column of the mask where the window begins.
        size: height and width of the mask.

    Returns:
        The run lengths, or None if the mask is empty.
    """
    height, width = window.shape
    columns = np.zeros((width, height + 2), dtype=bool)  # off above and below, so that no run leaves its column
    columns[:, 1:-1] = window.T
    columns = columns.ravel()
    changes = np.flatnonzero(columns[1:] != columns[:-1])
    if len(changes) == 0:
        return None
    column, row = np.divmod(changes, height + 2)
    edges = (column + left) * size[0] + row + top
    starts, ends = edges[::2], edges[1::2]
    # A run that reaches the bottom of the mask continues at the top of the next column.
    apart = starts[1:] != ends[:-1]
    starts, ends = starts[np.append(True, apart)], ends[np.append(apart, True)]
    total = size[0] * size[1]
    edges = np.column_stack([starts, ends]).ravel()
    if edges[-1] != total:
        edges = np.append(edges, total)
    return np.diff(edges, prepend=0).tolist()


def _with_text(rle: dict) -> dict:
    counts = rle["counts"]
    return {"size": list(rle["size"]), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def _parts(rles: Sequence[dict]) -> Iterator[Sequence[dict]]:
    for start in range(0, len(rles), MASKS_AT_ONCE):
        yield rles[start : start + MASKS_AT_ONCE]
