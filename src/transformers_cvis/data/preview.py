# SPDX-License-Identifier: Apache-2.0
"""Draw training clips with their labels, to check by eye what a model is trained on."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .. import rle
from ..processing import Track, contact_sheet, draw_tracks


def draw_clips(samples: Sequence[dict], class_names: Sequence[str], tile_width: int = 320) -> Image.Image:
    """Draw a row per clip: its augmented frames with masks and classes.

    Args:
        samples: samples of [`ClipDataset`] or [`MixedClipDataset`], all with the same number of frames.
        class_names: class names in label order.
        tile_width: width of a drawn frame in pixels.
    """
    height, width = np.max([sample["pixel_values_videos"].shape[-2:] for sample in samples], axis=0)
    frames, captions = [], []
    for sample in samples:
        tracks = _tracks(sample["labels"], class_names)
        clip = sample["pixel_values_videos"].permute(0, 2, 3, 1).numpy()
        for number, (frame, frame_index) in enumerate(zip(clip, sample["frame_indices"], strict=True)):
            drawn = draw_tracks(frame, tracks, number)
            frames.append(np.pad(drawn, ((0, height - drawn.shape[0]), (0, width - drawn.shape[1]), (0, 0))))
            captions.append(f"{sample['name']}, frame {frame_index}")
    return contact_sheet(frames, captions, columns=len(clip), tile_width=tile_width)


def _tracks(labels: dict, class_names: Sequence[str]) -> list[Track]:
    """Convert the labels of a sample to tracks of score 1."""
    tracks = []
    for number, (label, masks) in enumerate(zip(labels["class_labels"].tolist(), labels["masks"].numpy(), strict=True)):
        segmentations = [rle.encode_or_none(mask) for mask in masks]
        boxes = rle.corner_boxes(segmentations)
        tracks.append(Track(1.0, label, class_names[label], number, segmentations, boxes))
    return tracks
