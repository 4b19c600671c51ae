# SPDX-License-Identifier: Apache-2.0
import numpy as np
import torch

from transformers_cvis.data import draw_clips
from transformers_cvis.processing import track_colour


def sample(name, height, width, masks):
    return {
        "pixel_values_videos": torch.full((2, 3, height, width), 128, dtype=torch.uint8),
        "labels": {"class_labels": torch.ones(len(masks), dtype=torch.int64), "masks": torch.from_numpy(masks)},
        "frame_indices": [3, 5],
        "name": name,
    }


def test_a_row_per_clip_with_the_masks_of_each_frame():
    masks = np.zeros((1, 2, 100, 160), dtype=bool)
    masks[0, 1, 40:80, 20:100] = True
    picture = np.asarray(
        draw_clips(
            [sample("video 1", 100, 160, masks), sample("image 7", 60, 90, np.zeros((0, 2, 60, 90), dtype=bool))],
            ["cat", "dog"],
            tile_width=160,
        )
    ).astype(int)
    gap, caption = 6, 18
    assert picture.shape == (gap + 2 * (100 + caption + gap), gap + 2 * (160 + gap), 3)
    first, second = picture[gap : gap + 100, gap : gap + 160], picture[gap : gap + 100, 2 * gap + 160 :][:, :160]
    assert np.abs(first - 128).max() < 8  # the object is not in the first frame
    tinted = 0.6 * 128 + 0.4 * np.array(track_colour(0))
    assert np.abs(second[60, 60] - tinted).max() < 4
    assert np.abs(second[90, 150] - 128).max() < 8
    below = picture[2 * gap + 100 + caption :, gap : gap + 160][:100]
    assert np.abs(below[:58, :88] - 128).max() < 8
    assert below[65:].max() < 40
