# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

from transformers_cvis.processing import segment_masks
from transformers_cvis.rle import decode


def interpolate(logits, size):
    return torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)


def dense_masks(logits, input_size, original_size):
    """Compute masks by definition: upsample everything, crop, resize, threshold."""
    height, width = logits.shape[-2:]
    network = interpolate(logits, (4 * height, 4 * width))[..., : input_size[0], : input_size[1]]
    on = network > 0
    probability_sum = (network.sigmoid() * on).flatten(1).sum(1)
    return interpolate(network, original_size) > 0, probability_sum, on.flatten(1).sum(1)


def blobs(num_queries, num_frames, height, width, dtype=torch.float64, seed=0):
    """Return smooth random logits, some all negative, some all positive."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(num_queries * num_frames, 1, 3, 3, generator=generator, dtype=dtype) * 3
    offset = torch.randn(num_queries * num_frames, 1, 1, 1, generator=generator, dtype=dtype) * 3
    logits = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic") + offset
    return logits.view(num_queries, num_frames, height, width)


@pytest.mark.parametrize(
    ("mask_size", "input_size", "original_size"),
    [
        ((24, 32), (96, 128), (96, 128)),  # neither padding nor resize
        ((24, 32), (90, 101), (90, 101)),  # padding
        ((24, 32), (90, 120), (271, 363)),  # enlarged, odd
        ((24, 32), (90, 120), (31, 17)),  # shrunk by more than 2: interpolation skips pixels
        ((8, 8), (1, 32), (1, 1)),
        ((8, 8), (32, 32), (1, 1)),
    ],
)
def test_equals_the_dense_definition(mask_size, input_size, original_size):
    logits = blobs(12, 3, *mask_size)
    expected, probability_sum, pixel_count = dense_masks(logits, input_size, original_size)
    masks = segment_masks(logits, input_size, original_size)
    assert 0 < sum(not on.any() for on in expected.flatten(0, 1)) < 36 or original_size == (1, 1)
    for query in range(12):
        for frame in range(3):
            segmentation, on = masks.segmentations[query][frame], expected[query, frame].numpy()
            if not on.any():
                assert segmentation is None
                continue
            assert segmentation["size"] == list(original_size)
            assert np.array_equal(decode(segmentation), on)
            reference = mask_utils.encode(np.asfortranarray(on.astype(np.uint8)))
            assert segmentation["counts"] == reference["counts"].decode()
    np.testing.assert_allclose(masks.probability_sum, probability_sum, rtol=1e-12)
    np.testing.assert_array_equal(masks.pixel_count, pixel_count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_input(dtype):
    logits = blobs(6, 2, 24, 32, torch.float32).to(dtype)
    expected, _, _ = dense_masks(logits.float(), (90, 120), (200, 300))
    masks = segment_masks(logits, (90, 120), (200, 300))
    decoded = [
        [np.zeros((200, 300), bool) if rle is None else decode(rle) for rle in query] for query in masks.segmentations
    ]
    assert (np.array(decoded) != expected.numpy()).mean() < 1e-5


def test_empty_masks_cost_no_upsampling(monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "interpolate", lambda *args, **kwargs: pytest.fail("upsampled"))
    masks = segment_masks(-torch.ones(5, 4, 24, 32), (96, 128), (1080, 1920))
    assert masks.segmentations == [[None] * 4] * 5
    assert masks.pixel_count.sum() == 0


def test_logits_too_small_for_the_input_size():
    with pytest.raises(ValueError, match=r"\(8, 8\) cover a network input of \(32, 32\), smaller than .*\(40, 32\)"):
        segment_masks(torch.zeros(1, 1, 8, 8), (40, 32), (40, 32))
