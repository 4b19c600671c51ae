# SPDX-License-Identifier: Apache-2.0
import pytest

from transformers_cvis.messages import check_at_least, check_choice, did_you_mean


@pytest.mark.parametrize(
    ("name", "names", "hint"),
    [
        ("batchsize", ["max_steps", "batch_size"], " Did you mean 'batch_size'?"),
        ("DOG", ["cat", "Dog"], " Did you mean 'Dog'?"),
        ("zebra", ["cat", "dog"], ""),
        ("zebra", [], ""),
        (55, [1, 5.5], " Did you mean '5.5'?"),
    ],
)
def test_did_you_mean(name, names, hint):
    assert did_you_mean(name, names) == hint
    assert did_you_mean(name, iter(names)) == hint


def test_choice():
    check_choice("similarity", "cosine", ("cosine", "dot"))
    with pytest.raises(
        ValueError, match="`similarity` must be one of 'cosine', 'dot', got 'cosin'. Did you mean 'cosine'?"
    ):
        check_choice("similarity", "cosin", ("cosine", "dot"))
    with pytest.raises(ValueError, match="`level` must be one of 1, 2, got None.$"):
        check_choice("level", None, (1, 2))


def test_at_least():
    check_at_least("clip_length", 1, 1)
    with pytest.raises(ValueError, match="`clip_length` must be at least 1 frames, got 0.$"):
        check_at_least("clip_length", 0, 1, "frames")
    with pytest.raises(ValueError, match="`threshold` must be at least 0.5, got nan.$"):
        check_at_least("threshold", float("nan"), 0.5)
