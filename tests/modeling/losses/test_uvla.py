# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from transformers_cvis.modeling.losses import unified_video_label_assignment


def preferences(num_queries, *favourites):
    """Return costs `(1, Q, newcomers)`: lowest for a newcomer's favourite query, then rising with the query."""
    cost = np.tile(np.arange(1.0, num_queries + 1)[:, None], (1, len(favourites)))
    cost[list(favourites), range(len(favourites))] = 0
    return cost[None]


def test_newcomers_are_matched_once_and_keep_their_query():
    visible = np.array([[True, True, False], [False, True, True]])
    costs = [preferences(4, 2), preferences(4, 1), np.zeros((1, 4, 0))]
    history = unified_video_label_assignment(costs, visible)
    assert history[:, 0].tolist() == [[2, -1], [2, 1], [2, 1]]


def test_held_queries_are_not_given_away():
    visible = np.array([[True, True], [False, True]])
    costs = [preferences(3, 1), preferences(3, 1)]
    for rule in ("paper", "released"):
        history = unified_video_label_assignment(costs, visible, rule)
        assert history[1, 0].tolist() == [1, 0]


def test_rules_differ_for_the_query_of_a_vanished_object():
    visible = np.array([[True, False, True], [False, True, True]])
    costs = [preferences(3, 1), preferences(3, 1), np.zeros((1, 3, 0))]
    paper = unified_video_label_assignment(costs, visible, "paper")
    released = unified_video_label_assignment(costs, visible, "released")
    assert paper[2, 0].tolist() == [1, 0]
    assert released[2, 0].tolist() == [1, 1]


def test_layers_keep_their_own_history():
    visible = np.array([[True, True], [False, True]])
    costs = [np.concatenate([preferences(3, 0), preferences(3, 2)]), np.concatenate([preferences(3, 0)] * 2)]
    history = unified_video_label_assignment(costs, visible)
    assert history[1].tolist() == [[0, 1], [2, 0]]


def test_more_objects_than_queries():
    with pytest.raises(ValueError, match="hold 3 objects, but the model has only 2 queries"):
        unified_video_label_assignment([np.zeros((1, 2, 3))], np.ones((3, 1), dtype=bool))


@pytest.mark.parametrize("rule", ["paper", "released"])
def test_object_left_out_stays_out(rule):
    """The second of two objects fits the only query better; in the second clip it is absent and a third one appears."""
    visible = np.array([[True, True, True], [True, False, True], [False, True, True]])
    costs = [np.array([[[2.0, 1.0]]]), np.array([[[0.0]]]), np.zeros((1, 1, 0))]
    history = unified_video_label_assignment(costs, visible, rule, leave_surplus=True)
    last = 0 if rule == "released" else -1
    assert history[:, 0].tolist() == [[-1, 0, -1], [-1, 0, last], [-1, 0, last]]
