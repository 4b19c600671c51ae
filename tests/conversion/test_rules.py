# SPDX-License-Identifier: Apache-2.0
"""Rules that rename tensors."""

from transformers_cvis.conversion.rules import Ignore, Rename, count_indices, packed_attention, prefixed


def test_prefixed_rules_change_their_targets_alone():
    rules = [Rename("a", "b"), Rename("c", ("d", "e")), Ignore("f", "not needed")]
    assert prefixed(rules, "detector.") == [
        Rename("a", ("detector.b",)),
        Rename("c", ("detector.d", "detector.e")),
        Ignore("f", "not needed"),
    ]


def test_packed_attention_refers_to_the_group_after_those_of_its_source():
    packed, output = packed_attention(r"layers\.(\d+)\.attn", r"blocks.\1")
    assert packed.targets == tuple(rf"blocks.\1.{part}_proj.\g<2>" for part in "qkv")
    assert output.targets == (r"blocks.\1.out_proj.\g<2>",)


def test_count_indices_counts_each_index_once():
    names = ["layers.0.weight", "layers.0.bias", "layers.12.weight", "head.layers.5.weight"]
    assert count_indices(names, r"layers\.(\d+)\.") == 2
