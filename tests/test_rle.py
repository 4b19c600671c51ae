# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from transformers_cvis import rle


def random_masks(num_masks, height=11, width=7, density=0.5):
    return np.random.default_rng(0).random((num_masks, height, width)) < density


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_encode_and_decode(dtype):
    masks = random_masks(3).astype(dtype)
    encoded = [rle.encode(mask) for mask in masks]
    for mask, found in zip(masks, encoded, strict=True):
        reference = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert found == {"size": [11, 7], "counts": reference["counts"].decode()}
        decoded = rle.decode(found)
        assert decoded.dtype == bool
        assert np.array_equal(decoded, mask)
    decoded = rle.decode_all(encoded)
    assert decoded.dtype == bool
    assert np.array_equal(decoded, masks)


def test_nonzero_pixels_are_on():
    mask = np.array([[0, 255, 2], [0, 1, 0]], dtype=np.uint8)
    assert np.array_equal(rle.decode(rle.encode(mask)), mask > 0)


def test_masks_are_read_column_by_column():
    mask = np.array([[0, 1], [1, 1]], dtype=bool)
    assert rle.run_lengths(rle.encode(mask)["counts"]).tolist() == [1, 3]
    assert rle.run_lengths(rle.encode(~mask)["counts"]).tolist() == [0, 1, 3]


def test_no_mask_at_all():
    assert rle.from_run_lengths([], (3, 4)) == []
    assert rle.encode_or_none(np.zeros((3, 4), dtype=bool)) is None
    with pytest.raises(ValueError, match="No masks to decode"):
        rle.decode_all([])


def test_undecodable_masks_are_refused():
    too_many = {"size": [3, 4], "counts": rle.encode(np.ones((5, 4), dtype=bool))["counts"]}
    with pytest.raises(ValueError, match="Invalid RLE"):
        rle.decode(too_many)
    with pytest.raises(ValueError, match="Invalid RLE"):
        rle.decode_all([rle.empty((3, 4)), too_many])


POLYGONS = [[1, 1, 5, 1, 5, 6, 1, 6], [4.5, 0, 7, 0, 7, 3]]


def test_every_form_becomes_the_same():
    size = (11, 7)
    expected = mask_utils.merge(mask_utils.frPyObjects(POLYGONS, *size))
    text = expected["counts"].decode()
    runs = rle.run_lengths(text).tolist()
    forms = [POLYGONS, expected, {"size": size, "counts": text}, {"size": [11, 7], "counts": runs}]
    assert [rle.compress(form, size) for form in forms] == [{"size": [11, 7], "counts": text}] * 4
    assert rle.from_polygons(POLYGONS, size)["counts"] == text
    assert [rle.compress(nothing, size) for nothing in (None, [], {})] == [rle.empty(size)] * 3


def test_areas_of_more_masks_than_pycocotools_counts():
    masks = random_masks(600, density=0.3)
    encoded = [rle.encode(mask) for mask in masks]
    areas = rle.areas(encoded)
    assert areas.dtype == np.int64
    assert np.array_equal(areas, masks.sum((1, 2)))
    assert np.array_equal(rle.intersection_areas(encoded, encoded[::-1]), (masks & masks[::-1]).sum((1, 2)))
    assert rle.areas([]).shape == rle.intersection_areas([], []).shape == (0,)


def test_ious():
    masks = random_masks(5)
    masks[4] = False
    encoded = [rle.encode(mask) for mask in masks]
    flat = masks.reshape(5, -1)
    union = (flat[:, None] | flat[None, :3]).sum(-1)
    np.testing.assert_array_equal(rle.ious(encoded, encoded[:3]), (flat[:, None] & flat[None, :3]).sum(-1) / union)
    assert rle.ious(encoded[4:], encoded[4:]).tolist() == [[0]]
    assert rle.ious(encoded, [rle.encode(np.ones((3, 4), dtype=bool))]).max() <= 0
    assert rle.ious([], encoded).shape == (0, 5)
    assert rle.ious(encoded, []).shape == (5, 0)


@pytest.mark.parametrize("counts", ["", "P", "ä!", "0p", " 0"])
def test_run_lengths_that_cannot_be_read(counts):
    assert rle.run_lengths(counts) is None


def test_run_lengths_of_pycocotools_are_read():
    rng = np.random.default_rng(0)
    for density in (0.0, 0.001, 0.05, 0.5, 1.0):
        mask = np.asfortranarray(rng.random((370, 410)) < density, dtype=np.uint8)
        flat = mask.ravel("F")
        changes = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff(np.concatenate([[0], changes, [flat.size]]))
        if flat[0]:
            runs = np.concatenate([[0], runs])
        np.testing.assert_array_equal(rle.run_lengths(mask_utils.encode(mask)["counts"].decode()), runs)


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_of_a_window(seed):
    """Windows at every border: runs that touch the bottom continue in the next column."""
    random = np.random.default_rng(seed)
    height, width = random.integers(1, 7, 2)
    mask = np.zeros((height, width), np.uint8)
    top, bottom = np.sort(random.choice(height + 1, 2, replace=False))
    left, right = np.sort(random.choice(width + 1, 2, replace=False))
    mask[top:bottom, left:right] = random.random((bottom - top, right - left)) < 0.7
    counts = rle.window_run_lengths(mask[top:bottom, left:right].astype(bool), top, left, (height, width))
    if not mask.any():
        assert counts is None
        return
    compressed = mask_utils.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    assert compressed["counts"] == mask_utils.encode(np.asfortranarray(mask))["counts"]


def test_empty():
    reference = mask_utils.encode(np.zeros((5, 7), np.uint8, order="F"))
    assert rle.empty((5, 7)) == {"size": [5, 7], "counts": reference["counts"].decode()}


def test_boxes_of_masks():
    mask = np.zeros((10, 20), np.uint8, order="F")
    mask[2:5, 7:11] = 1
    encoded = mask_utils.encode(mask)
    assert rle.corner_boxes([None, encoded, None]) == [None, (7.0, 2.0, 11.0, 5.0), None]
    assert rle.boxes([encoded, encoded]).tolist() == [[7.0, 2.0, 4.0, 3.0]] * 2
    assert rle.boxes([]).shape == (0, 4)
    assert rle.boxes([rle.empty((4, 5))]).tolist() == [[0, 0, 0, 0]]
    assert rle.corner_boxes([None]) == [None]
