# SPDX-License-Identifier: Apache-2.0
import colorsys
from itertools import pairwise

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from transformers_cvis.processing import Track, contact_sheet, draw_tracks, track_colour
from transformers_cvis.rle import corner_boxes


def make_track(*masks, label="dog", score=0.9, query_id=0):
    segmentations = []
    for mask in masks:
        rle = None if mask is None else mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
        segmentations.append(rle and {"size": rle["size"], "counts": rle["counts"].decode()})
    return Track(score, 0, label, query_id, segmentations, corner_boxes(segmentations))


def rectangle(size, top, left, bottom, right):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


class TestColours:
    def test_depend_on_the_track_alone_and_differ(self):
        colours = [track_colour(index) for index in range(100)]
        assert colours == [track_colour(index) for index in range(100)]
        assert len(set(colours)) == 100
        for first, second in pairwise(colours):
            distance = abs(colorsys.rgb_to_hsv(*first)[0] - colorsys.rgb_to_hsv(*second)[0])
            assert min(distance, 1 - distance) > 0.3


class TestDrawTracks:
    def test_tint_and_contour_stay_inside_the_mask(self):
        mask = rectangle((120, 160), 40, 50, 90, 120)
        frame = np.full((120, 160, 3), 100, np.uint8)
        drawn = draw_tracks(frame, [make_track(mask, query_id=4)], 0, labels=False)
        assert np.array_equal(drawn[~mask], frame[~mask])
        assert (frame == 100).all()
        colour = np.array(track_colour(4))
        assert (drawn[40, 50:120] == colour).all()
        assert (drawn[40:90, 119] == colour).all()
        assert np.abs(drawn[65, 80] - (100 * 0.6 + colour * 0.4)).max() <= 1

    def test_frame_border_is_not_a_contour(self):
        frame = np.zeros((120, 160, 3), np.uint8)
        drawn = draw_tracks(frame, [make_track(np.ones((120, 160), bool))], 0, labels=False)
        assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 1  # tint alone

    def test_absent_tracks_leave_the_frame_alone(self):
        frame = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        track = make_track(None, np.ones((20, 30), bool))
        assert np.array_equal(draw_tracks(frame, [track], 0), frame)
        assert not np.array_equal(draw_tracks(frame, [track], 1), frame)

    def test_the_better_track_is_on_top(self):
        mask = rectangle((60, 60), 10, 10, 50, 50)
        tracks = [make_track(mask, score=0.9, query_id=1), make_track(mask, score=0.2, query_id=2)]
        for order in (tracks, tracks[::-1]):
            drawn = draw_tracks(np.zeros((60, 60, 3), np.uint8), order, 0, labels=False)
            assert tuple(drawn[10, 30]) == track_colour(1)

    @pytest.mark.parametrize("size", [(96, 160), (288, 512), (1080, 1920), (1, 1), (17, 13)])
    @pytest.mark.parametrize("corner", ["top left", "bottom right", "everywhere"])
    def test_labels_fit_whatever_the_size(self, size, corner):
        height, width = size
        mask = {
            "top left": rectangle(size, 0, 0, max(1, height // 4), max(1, width // 4)),
            "bottom right": rectangle(size, height - max(1, height // 4), width - max(1, width // 4), height, width),
            "everywhere": np.ones(size, bool),
        }[corner]
        tracks = [make_track(mask, label="a rather long name of a thing", score=s / 10, query_id=s) for s in range(5)]
        frame = np.zeros((height, width, 3), np.uint8)
        drawn = draw_tracks(frame, tracks, 0)
        assert drawn.shape == frame.shape
        assert drawn.dtype == np.uint8
        assert not np.array_equal(drawn, draw_tracks(frame, tracks, 0, labels=False)) or min(size) < 10

    def test_labels_do_not_cover_each_other(self):
        mask = rectangle((288, 512), 100, 100, 140, 200)
        tracks = [make_track(mask, label="x", score=0.5 + i / 10, query_id=i) for i in range(5)]
        without = draw_tracks(np.zeros((288, 512, 3), np.uint8), tracks, 0, labels=False)
        drawn = draw_tracks(np.zeros((288, 512, 3), np.uint8), tracks, 0)
        changed = drawn[(drawn != without).any(-1)]
        for track in tracks:
            assert (changed == track_colour(track.query_id)).all(-1).sum() > 100, "each label shows its background"

    def test_size_mismatch(self):
        with pytest.raises(ValueError, match=r"mask of Track\(.*\) is of size \(4, 6\), the frame of size \(8, 8\)"):
            draw_tracks(np.zeros((8, 8, 3), np.uint8), [make_track(np.ones((4, 6), bool))], 0)


class TestContactSheet:
    @pytest.mark.parametrize(
        ("count", "columns", "grid"), [(1, None, (1, 1)), (5, None, (2, 3)), (9, None, (3, 3)), (4, 4, (1, 4))]
    )
    def test_grid(self, count, columns, grid):
        frames = [np.full((90, 160, 3), 50 + i, np.uint8) for i in range(count)]
        sheet = contact_sheet(frames, columns=columns, tile_width=80)
        assert sheet.size == (6 + grid[1] * 86, 6 + grid[0] * 51)
        for index in range(count):
            row, column = divmod(index, grid[1])
            assert sheet.getpixel((6 + column * 86 + 40, 6 + row * 51 + 20)) == (50 + index,) * 3

    def test_captions_take_room(self):
        frames = [np.zeros((90, 160, 3), np.uint8)] * 2
        assert contact_sheet(frames, ["a", "b"]).size[1] > contact_sheet(frames).size[1]
        with pytest.raises(ValueError, match="Got 1 captions for 2 frames"):
            contact_sheet(frames, ["a"])

    def test_no_frame(self):
        with pytest.raises(ValueError, match="at least one frame"):
            contact_sheet([])
