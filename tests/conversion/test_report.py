# SPDX-License-Identifier: Apache-2.0
"""The text of a conversion report."""

from transformers_cvis.conversion import ConversionReport


def test_report_lists_names_that_differ_in_numbers_once():
    report = ConversionReport(
        mapped={"a": ("b",), "c": ("d", "e")},
        ignored={f"layers.{layer}.mask": "computed" for layer in range(5)} | {"empty": "of the loss"},
        unknown=[f"head{number}.weight" for number in range(10)],
        missing=["norm.0.weight", "norm.1.weight"],
        notes=["The model is small."],
    )
    assert str(report).splitlines() == [
        "The model is small.",
        "2 tensors mapped, 6 ignored, 10 unknown; 2 weights newly initialised.",
        "Ignored (computed):",
        "  layers.*.mask (5)",
        "Ignored (of the loss):",
        "  empty",
        "Unknown, with no place in the model:",
        *(f"  head{number}.weight" for number in range(8)),
        "  and 2 more",
        "Missing from the checkpoint, newly initialised:",
        "  norm.*.weight (2)",
    ]


def test_report_without_losses_is_one_line():
    assert str(ConversionReport(mapped={"a": ("b",)})) == "1 tensors mapped, 0 ignored, 0 unknown."
