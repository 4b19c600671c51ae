# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from transformers_cvis.processing import Track, TrackAccumulator
from transformers_cvis.rle import decode

SIZE = (32, 64)  # of frames and of network input; mask logits are (8, 16)


def class_logits(*probabilities):
    """Return logits whose softmax is the given rows, no-object last."""
    return torch.tensor(probabilities, dtype=torch.float64).log()


def mask_logits(num_queries, num_frames, value=2.0):
    """Return masks: query q has logit `value` in columns [2q, 2q + 2) of every frame, and far below zero elsewhere."""
    logits = torch.full((num_queries, num_frames, 8, 16), -1000.0, dtype=torch.float64)
    for query in range(num_queries):
        logits[query, :, :, 2 * query : 2 * query + 2] = value
    return logits


def reference_tracks(clips, input_size, original_size, top_k):
    """Select by definition, densely; return (score, label, query, masks) of the best pairs."""
    scores = torch.stack([logits.softmax(-1)[:, :-1] for logits, _ in clips]).amax(0)
    numerator = denominator = 0
    masks = []
    for _, logits in clips:
        up = torch.nn.functional.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
        up = up[..., : input_size[0], : input_size[1]]
        on = up.sigmoid() > 0.5
        numerator = numerator + (up.sigmoid() * on).sum((1, 2, 3))
        denominator = denominator + on.sum((1, 2, 3)).double()
        masks.append(torch.nn.functional.interpolate(up, original_size, mode="bilinear", align_corners=False) > 0)
    quality = numerator / (denominator + 1e-6)
    masks = torch.cat(masks, dim=1)
    best, pairs = scores.flatten().topk(top_k)
    tracks = []
    for score, pair in zip(best, pairs.tolist(), strict=True):
        query, label = divmod(pair, scores.shape[1])
        tracks.append((float(score * quality[query]), label, query, masks[query].numpy()))
    return sorted(tracks, key=lambda track: -track[0])


def test_whole_video_selection_is_the_definition():
    generator = torch.Generator().manual_seed(0)
    clips = [
        (
            torch.randn(9, 5, generator=generator, dtype=torch.float64) * 2,
            torch.nn.functional.interpolate(
                torch.randn(9, n, 3, 4, generator=generator, dtype=torch.float64) * 3, (8, 16), mode="bicubic"
            )
            - 1,
        )
        for n in (2, 2, 1)
    ]
    accumulator = TrackAccumulator((50, 75), (30, 45), top_k=12)
    for clip in clips:
        accumulator.update(*clip)
    tracks, expected = accumulator.tracks(), reference_tracks(clips, (30, 45), (50, 75), 12)
    assert len(tracks) == 12
    assert accumulator.num_frames == 5
    assert len({track.query_id for track in tracks}) < 12, "the case should hold a query with two labels"
    for track, (score, label, query, masks) in zip(tracks, expected, strict=True):
        assert track.score == pytest.approx(score, abs=1e-12)
        assert (track.label_id, track.query_id, track.label) == (label, query, str(label))
        for segmentation, box, mask in zip(track.segmentations, track.boxes, masks, strict=True):
            if not mask.any():
                assert segmentation is None
                assert box is None
                continue
            assert np.array_equal(decode(segmentation), mask)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


def test_score_is_the_maximum_over_clips_times_the_mean_quality():
    accumulator = TrackAccumulator(SIZE, SIZE, {0: "cat", 1: "dog"}, top_k=1)
    accumulator.update(class_logits([0.1, 0.2, 0.7]), mask_logits(1, 2, value=1.0))
    accumulator.update(class_logits([0.6, 0.1, 0.3]), mask_logits(1, 2, value=5.0))
    (track,) = accumulator.tracks()
    assert (track.label, track.num_frames_visible) == ("cat", 4)
    upsampled = torch.nn.functional.interpolate(
        torch.cat([mask_logits(1, 2, 1.0), mask_logits(1, 2, 5.0)], 1), scale_factor=4, mode="bilinear"
    )
    probabilities = upsampled.sigmoid()[upsampled > 0]
    assert track.score == pytest.approx(0.6 * float(probabilities.sum() / (len(probabilities) + 1e-6)))


def test_an_empty_query_keeps_its_place_in_an_evaluation():
    accumulator = TrackAccumulator(SIZE, SIZE, top_k=1)
    accumulator.update(class_logits([0.9, 0.1]), torch.full((1, 3, 8, 16), -1.0))
    (track,) = accumulator.tracks()
    assert (track.score, track.segmentations, track.boxes) == (0.0, [None] * 3, [None] * 3)


class TestThreshold:
    def test_best_label_once_per_query_and_no_weak_ones(self):
        accumulator = TrackAccumulator(SIZE, SIZE, threshold=0.3)
        accumulator.update(class_logits([0.5, 0.4, 0.1], [0.2, 0.2, 0.6], [0.31, 0.01, 0.68]), mask_logits(3, 1, 3.0))
        tracks = accumulator.tracks()  # query 2 falls below 0.3 by its mask quality of about 0.93
        assert [(track.query_id, track.label_id) for track in tracks] == [(0, 0)]

    def test_the_better_of_two_queries_on_one_object(self):
        accumulator = TrackAccumulator(SIZE, SIZE, threshold=0.3)
        masks = mask_logits(3, 2)
        masks[1, 0] = masks[0, 0]  # has the mask of the other object in one frame of two: half is not a duplicate yet
        accumulator.update(class_logits([0.7, 0.1, 0.2], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2]), masks)
        assert {track.query_id for track in accumulator.tracks()} == {0, 1, 2}

        accumulator = TrackAccumulator(SIZE, SIZE, threshold=0.3)
        masks[1] = masks[0]
        accumulator.update(class_logits([0.7, 0.1, 0.2], [0.1, 0.8, 0.1], [0.6, 0.2, 0.2]), masks)
        assert [track.query_id for track in accumulator.tracks()] == [1, 2]

    def test_top_k_limits(self):
        accumulator = TrackAccumulator(SIZE, SIZE, threshold=0.1, top_k=1)
        accumulator.update(class_logits([0.5, 0.5], [0.8, 0.2]), mask_logits(2, 1))
        assert [track.query_id for track in accumulator.tracks()] == [1]

    def test_a_query_counts_from_the_clip_where_it_gets_an_object(self):
        accumulator = TrackAccumulator(SIZE, SIZE, threshold=0.5)
        accumulator.update(class_logits([0.1, 0.9]), mask_logits(1, 2))
        accumulator.update(class_logits([0.9, 0.1]), mask_logits(1, 2))
        accumulator.update(class_logits([0.1, 0.9]), mask_logits(1, 1))
        (track,) = accumulator.tracks()
        assert [rle is not None for rle in track.segmentations] == [False, False, True, True, True]

    def test_step_gives_the_clip_alone(self):
        accumulator = TrackAccumulator(SIZE, SIZE, threshold=0.5)
        assert accumulator.step(class_logits([0.1, 0.9]), mask_logits(1, 2)) == []
        (track,) = accumulator.step(class_logits([0.8, 0.2]), mask_logits(1, 3))
        assert len(track.segmentations) == len(track.boxes) == 3
        (later,) = accumulator.step(class_logits([0.1, 0.9]), mask_logits(1, 1))
        assert (later.query_id, later.score) == (track.query_id, pytest.approx(track.score))
        assert accumulator.step(class_logits([0.1, 0.9]), -mask_logits(1, 1).abs()) == []  # nothing visible
        assert accumulator.num_frames == 7


class TestMeanLogits:
    """Models that average class logits over frames use this rule."""

    def test_frames_count_alike_and_masks_do_not_change_the_score(self):
        accumulator = TrackAccumulator(SIZE, SIZE, top_k=4, score_rule="mean_logits")
        short, long = class_logits([0.8, 0.1, 0.1], [0.2, 0.2, 0.6]), class_logits([0.1, 0.3, 0.6], [0.3, 0.6, 0.1])
        accumulator.update(short, mask_logits(2, 1, 0.1))
        accumulator.update(long, mask_logits(2, 3, 5.0))
        expected = ((short + 3 * long) / 4).softmax(-1)
        tracks = accumulator.tracks()
        assert len(tracks) == 4
        for track in tracks:
            assert track.score == pytest.approx(expected[track.query_id, track.label_id].item())

    def test_clips_of_any_length_score_alike(self):
        logits = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        scores = []
        for length in (1, 2, 6):
            accumulator = TrackAccumulator(SIZE, SIZE, top_k=12, score_rule="mean_logits")
            for clip in logits.split(length):
                accumulator.update(clip.mean(0), mask_logits(3, length))
            scores.append([track.score for track in accumulator.tracks()])
        assert scores[1] == pytest.approx(scores[0])
        assert scores[2] == pytest.approx(scores[0])

    def test_a_query_counts_from_the_clip_where_it_gets_an_object(self):
        """An object that enters late is recorded from its first clip, although its mean score rises only later."""
        accumulator = TrackAccumulator(SIZE, SIZE, threshold=0.5, score_rule="mean_logits")
        accumulator.update(class_logits([0.1, 0.9]), mask_logits(1, 2))
        assert accumulator.tracks() == []
        accumulator.update(class_logits([0.7, 0.3]), mask_logits(1, 1))
        assert accumulator.tracks() == []  # visible, but with a low mean over the whole video
        accumulator.update(class_logits([0.99, 0.01]), mask_logits(1, 2))
        (track,) = accumulator.tracks()
        assert [rle is not None for rle in track.segmentations] == [False, False, True, True, True]


def test_a_track_prints_in_one_line():
    track = Track(0.91234, 3, "dog", 7, [None, {"size": [1, 1], "counts": "1"}], [None, (0, 0, 1, 1)])
    assert repr(track) == "Track(label='dog', score=0.912, query_id=7, visible in 1 of 2 frames)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Give a `threshold`, `top_k` or both"),
        ({"threshold": 1.5}, "`threshold` is a score in 0..1, got 1.5"),
        ({"top_k": 0}, "`top_k` must be at least 1, got 0"),
        (
            {"top_k": 1, "score_rule": "best"},
            "`score_rule` must be one of 'max_times_quality', .*, got 'best'",
        ),
    ],
)
def test_bad_selection(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrackAccumulator(SIZE, SIZE, **arguments)


def test_number_of_labels():
    accumulator = TrackAccumulator(SIZE, SIZE, {0: "cat"}, top_k=1)
    with pytest.raises(ValueError, match="The outputs have 2 classes, but `id2label` names 1"):
        accumulator.update(class_logits([0.2, 0.2, 0.6]), mask_logits(1, 1))


def test_no_clip():
    with pytest.raises(ValueError, match="No tracks before the first clip"):
        TrackAccumulator(SIZE, SIZE, top_k=1).tracks()
