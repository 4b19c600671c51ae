# SPDX-License-Identifier: Apache-2.0
"""Matching of windows of frames by masks and queries, group by group."""

import pytest
import torch

from transformers_cvis.modeling.layers.query_matching import match_window_queries


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_masks_decide_between_equal_queries():
    queries = torch.ones(1, 4, 8)
    masks = torch.full((1, 4, 40), -1.0)
    for query in range(4):
        masks[0, query, 10 * query : 10 * query + 8] = 1
    order = torch.tensor([2, 0, 3, 1])
    assert match_window_queries(queries, masks[:, order], queries, masks, [4])[0].tolist() == order.argsort().tolist()


def test_queries_decide_for_empty_masks():
    queries, empty = random(1, 4, 8), torch.full((1, 4, 40), -1.0)
    order = torch.tensor([2, 0, 3, 1])
    assert match_window_queries(queries[:, order], empty, queries, empty, [4])[0].tolist() == order.argsort().tolist()


def test_groups_do_not_mix_and_do_not_matter_to_each_other():
    queries, masks = random(2, 7, 8), random(2, 7, 30, seed=1)
    before, masks_before = random(2, 7, 8, seed=2), random(2, 7, 30, seed=3)
    order = match_window_queries(queries, masks, before, masks_before, [4, 3])
    assert order[:, :4].sort(dim=1).values.tolist() == [[0, 1, 2, 3]] * 2
    assert order[:, 4:].sort(dim=1).values.tolist() == [[4, 5, 6]] * 2
    alone = match_window_queries(queries[:, :4], masks[:, :4], before[:, :4], masks_before[:, :4], [4])
    assert torch.equal(order[:, :4], alone)


def test_queries_that_are_not_finite():
    with pytest.raises(ValueError, match="cannot be matched: they hold NaN or infinity"):
        match_window_queries(torch.full((1, 2, 3), torch.nan), random(1, 2, 5), random(1, 2, 3), random(1, 2, 5), [2])
