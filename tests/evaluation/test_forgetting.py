# SPDX-License-Identifier: Apache-2.0
"""Forgetting rates: the formulas by hand, classes left out, videos counted."""

import numpy as np
import pytest

from transformers_cvis.evaluation.forgetting import crisp_forgetting, hvpl_forgetting, only_in_videos_with_group
from transformers_cvis.evaluation.ground_truth import GroundTruth

# Five classes, three tasks: classes 0 and 1 in the base, 2 and 3 in task 1, 4 in task 2.
LEARNT_AFTER = [0, 0, 1, 1, 2]
VALUES = [[0.8, 0.6, 0.4], [0.5, 0.6, 0.7], [0.0, 0.4, 0.3], [0.0, 0.0, 0.0], [0.0, 0.0, 0.9]]


def test_both_rates_by_hand():
    terms = [0.4 / 0.8 / 2, 0.0, 0.1 / 0.4]
    rate = hvpl_forgetting(VALUES, LEARNT_AFTER)
    assert rate.value == pytest.approx(sum(terms) / 3)
    np.testing.assert_allclose(rate.terms, [*terms, np.nan])
    assert crisp_forgetting(VALUES, LEARNT_AFTER).value == pytest.approx(sum(terms) / 4)
    assert crisp_forgetting(VALUES, LEARNT_AFTER, num_classes="all").value == pytest.approx(sum(terms) / 5)


def test_released_counts_a_class_that_was_never_found_as_forgotten():
    rate = hvpl_forgetting(VALUES, LEARNT_AFTER, undefined="released")
    np.testing.assert_allclose(rate.terms, [0.25, 0, 0.25, 1], atol=1e-6)
    assert rate.value == pytest.approx(1.5 / 4, abs=1e-6)


def test_rows_without_ground_truth_are_left_out():
    values = [[-1.0, -1.0], [0.5, -1.0], [0.0, 0.3]]
    rate = hvpl_forgetting(values, [0, 0, 1])
    assert rate.value == 1.0
    assert np.isnan(rate.terms[0])
    assert crisp_forgetting(values, [0, 0, 1]).value == 0.5
    assert hvpl_forgetting(values, [0, 0, 1], undefined="released").terms[0] == pytest.approx(0, abs=1e-6)
    assert np.isnan(hvpl_forgetting([[-1.0, -1.0], [0.0, 0.3]], [0, 1]).value)


def test_order_of_rows_and_names_of_tasks_do_not_matter():
    order = [3, 4, 0, 2, 1]
    shuffled = hvpl_forgetting([VALUES[row] for row in order], [LEARNT_AFTER[row] for row in order])
    assert shuffled.value == pytest.approx(hvpl_forgetting(VALUES, LEARNT_AFTER).value)


def test_tracks_in_videos_without_their_group_are_dropped():
    ground_truth = GroundTruth(
        videos={1: {}, 2: {}},
        categories={1: "a", 2: "b", 3: "c"},
        annotations=[{"video_id": 1, "category_id": 1}, {"video_id": 2, "category_id": 2}],
    )
    results = [{"video_id": video, "category_id": category} for video in (1, 2) for category in (1, 2, 3)]

    def kept(groups):
        tracks = only_in_videos_with_group(results, ground_truth, groups)
        return [(track["video_id"], track["category_id"]) for track in tracks]

    assert kept([[1], [2], [3]]) == [(1, 1), (2, 2)]
    assert kept([[1, 3], [2]]) == [(1, 1), (1, 3), (2, 2)]
    assert kept([[1, 2, 3]]) == [(video, category) for video in (1, 2) for category in (1, 2, 3)]
    assert kept([[2]]) == [(2, 2)]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="forgetting needs at least two tasks"):
        hvpl_forgetting([[0.5]], [0])
    with pytest.raises(ValueError, match=r"values have shape \(5, 3\), expected .* 4 entries"):
        hvpl_forgetting(VALUES, [0, 0, 1, 2])
    with pytest.raises(ValueError, match=r"learnt_after has tasks \[0, 1, 3\], expected 0 to 2"):
        crisp_forgetting(VALUES, [0, 0, 1, 1, 3])
    with pytest.raises(ValueError, match="not finite; give -1 for a statistic without ground truth"):
        hvpl_forgetting([[np.nan, 0.1]], [0])
    with pytest.raises(ValueError, match="`undefined` must be one of 'exclude', 'released', got 'skip'"):
        hvpl_forgetting(VALUES, LEARNT_AFTER, undefined="skip")
    with pytest.raises(ValueError, match="`num_classes` must be one of 'old', 'all', got 'new'"):
        crisp_forgetting(VALUES, LEARNT_AFTER, num_classes="new")
