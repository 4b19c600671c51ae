# SPDX-License-Identifier: Apache-2.0
"""The evaluator against the reference numbers of YouTube-VIS: 12 statistics, per category, and IoU matrices."""

import json

import numpy as np
import pytest

from tests.support.goldens import load_case
from transformers_cvis.evaluation import evaluate_ytvis


@pytest.fixture(scope="module")
def case_and_result():
    case = load_case("ytvis_eval")
    expected = json.loads((case.folder / "expected.json").read_text())
    return expected, evaluate_ytvis(case.folder / "gt.json", case.folder / "results.json")


def test_summary(case_and_result):
    expected, result = case_and_result
    assert result.summary == pytest.approx(expected["summary"], abs=1e-9)


def test_per_category(case_and_result):
    expected, result = case_and_result
    assert {str(category_id) for category_id in result.per_category} == expected["per_category"].keys()
    for category_id, values in result.per_category.items():
        reference = expected["per_category"][str(category_id)]
        assert {name: values[name] for name in reference} == pytest.approx(reference, abs=1e-9), category_id


def test_iou_matrices(case_and_result):
    expected, result = case_and_result
    for sample in expected["iou_samples"]:
        ious, reference = result.ious[sample["video_id"], sample["category_id"]], np.array(sample["iou"])
        np.testing.assert_allclose(ious, reference[: len(ious)], rtol=0, atol=1e-9)
        assert len(ious) == min(len(reference), 100)
