# SPDX-License-Identifier: Apache-2.0
"""Parts of messages that several rooms share."""

from transformers_cvis.messages import did_you_mean


def test_similar_name_is_suggested():
    assert did_you_mean("clip_lenght", {"clip_length": 1, "other": 2}) == " Did you mean 'clip_length'?"


def test_name_like_no_other_gets_no_hint():
    assert did_you_mean("clip_length", ["zzz"]) == ""
