# SPDX-License-Identifier: Apache-2.0
"""Evaluations after each task and the report of a schedule, on tracks with known AP."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from transformers_cvis.evaluation.continual_report import ContinualReport, evaluate_after_task
from transformers_cvis.evaluation.video_ap import evaluate_ytvis
from transformers_cvis.hub.owned_files import read_files_of_report

SIZE = (32, 48)
TASKS = [["cat", "dog"], ["cow"]]


def box_mask(column: int) -> dict:
    mask = np.zeros(SIZE, dtype=np.uint8, order="F")
    mask[4:20, column : column + 8] = 1
    encoded = mask_utils.encode(mask)
    return {"size": list(SIZE), "counts": encoded["counts"].decode()}


def track(video_id: int, category_id: int, score: float | None = None, **more) -> dict:
    column = 12 * (category_id - 1)
    row = {"video_id": video_id, "category_id": category_id, "segmentations": [box_mask(column)], **more}
    return row if score is None else {**row, "score": score}


@pytest.fixture
def ground_truth() -> dict:
    """Videos 1 and 2 hold a cat, 2 also a dog, 3 a cow. Ids are not in the order of the tasks' names."""
    return {
        "videos": [{"id": number, "height": SIZE[0], "width": SIZE[1], "length": 1} for number in (1, 2, 3)],
        "categories": [{"id": 1, "name": "cow"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            track(1, 2, id=1),
            track(2, 2, id=2),
            track(2, 3, id=3),
            track(3, 1, id=4),
        ],
    }


# After the base everything is found. Later the dog is lost, and the best cat is false, in the video of the cow.
BASE_RESULTS = [track(1, 2, 0.9), track(2, 2, 0.9), track(2, 3, 0.9)]
LAST_RESULTS = [track(1, 2, 0.8), track(2, 2, 0.8), track(3, 1, 0.9), track(3, 2, 0.95)]


def report(ground_truth, forgetting_videos="containing", **options) -> ContinualReport:
    evaluations = [
        evaluate_after_task(ground_truth, results, TASKS, after, forgetting_videos)
        for after, results in enumerate([BASE_RESULTS, LAST_RESULTS])
    ]
    return ContinualReport(TASKS, evaluations, **options)


def test_matrices_follow_tasks_and_names(ground_truth):
    filled = report(ground_truth)
    assert filled.class_names == ["cat", "dog", "cow"]
    assert filled.learnt_after == [0, 0, 1]
    np.testing.assert_allclose(filled.class_matrix("AP"), [[1, 1], [1, 0], [0, 1]])
    np.testing.assert_allclose(filled.task_matrix("AP50")[:, 0], [1, 0])
    assert filled.task_matrix("AR1")[1].tolist() == pytest.approx([0, 1])


def test_false_tracks_in_other_videos_count_on_all_videos_only(ground_truth):
    filled, on_all_videos = report(ground_truth), report(ground_truth, "all")
    everywhere = evaluate_ytvis(ground_truth, LAST_RESULTS).per_category[2]["AP"]
    assert 0 < everywhere < 1
    assert filled.class_matrix()[0, 1] == pytest.approx(1)
    assert filled.class_matrix(all_videos=True)[0, 1] == on_all_videos.class_matrix()[0, 1] == everywhere
    # the task of cat and dog holds videos 1 and 2, the cow's video is outside
    assert filled.task_matrix()[0, 1] == pytest.approx(0.5)
    assert on_all_videos.task_matrix()[0, 1] == pytest.approx(everywhere / 2)


def test_forgetting_rates(ground_truth):
    filled = report(ground_truth)
    assert filled.class_forgetting().value == pytest.approx(0.5)
    assert filled.task_forgetting().value == pytest.approx(0.5)
    everywhere = evaluate_ytvis(ground_truth, LAST_RESULTS).per_category[2]["AP"]
    assert filled.crisp_forgetting().value == pytest.approx((1 + 1 - everywhere) / 2)
    assert report(ground_truth, num_classes="all").crisp_forgetting().value == pytest.approx((2 - everywhere) / 3)
    rates = filled.to_dict()["forgetting"]
    assert len(rates["hvpl_classes"]) == len(rates["hvpl_tasks"]) == 12
    assert rates["hvpl_classes"]["AP_large"] is None  # nothing of that size


def test_overall_numbers_over_seen_all_and_current_classes(ground_truth):
    seen, everything, current = (
        report(ground_truth, evaluate_classes=choice).overall() for choice in ("seen", "all", "current")
    )
    summary = evaluate_ytvis(ground_truth, LAST_RESULTS).summary["AP"]
    assert everything == pytest.approx([2 / 3, summary])
    assert seen == pytest.approx([1, summary])
    assert current == pytest.approx([1, 1])


def test_json_returns_the_same_report(ground_truth):
    filled = report(ground_truth, num_classes="all")
    content = json.loads(json.dumps(filled.to_dict(), allow_nan=False))
    again = ContinualReport.from_dict(content)
    assert again == filled
    assert again.to_dict() == filled.to_dict()


def test_files(ground_truth, tmp_path):
    filled = report(ground_truth)
    written = filled.save(tmp_path / "new" / "report")
    assert sorted(path.name for path in written) == [
        "ap_matrix.png",
        "forgetting.png",
        "report.json",
        "report.md",
        "steps.png",
    ]
    content = json.loads((tmp_path / "new" / "report" / "report.json").read_text())
    assert content["files"] == sorted(path.name for path in written)  # read by a push
    assert ContinualReport.read(tmp_path / "new" / "report" / "report.json") == filled
    text = (tmp_path / "new" / "report" / "report.md").read_text()
    assert "| HVPL, classes | 50.00 |" in text
    assert "| dog | 0 | 100.00 | 0.00 |" in text
    assert "| cow | 1 |  | 100.00 |" in text
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 4


def test_a_base_alone_has_a_report_without_forgetting(ground_truth, tmp_path):
    evaluation = evaluate_after_task(ground_truth, BASE_RESULTS, TASKS[:1], 0)
    alone = ContinualReport(TASKS[:1], [evaluation])
    assert alone.to_dict()["forgetting"] is None
    assert "forgetting" not in alone.to_markdown()
    assert "forgetting.png" not in [path.name for path in alone.save(tmp_path)]
    assert "forgetting.png" not in read_files_of_report(tmp_path / "report.json")


def test_bad_input_is_named(ground_truth):
    with pytest.raises(ValueError, match="no class 'bird'; it has .'cat', 'cow', 'dog'."):
        evaluate_after_task(ground_truth, BASE_RESULTS, [["bird"]], 0)
    with pytest.raises(ValueError, match="The class 'cat' is in more than one task"):
        evaluate_after_task(ground_truth, BASE_RESULTS, [["cat"], ["cat"]], 0)
    with pytest.raises(ValueError, match="Task 1 has no classes"):
        evaluate_after_task(ground_truth, BASE_RESULTS, [["cat"], []], 0)
    with pytest.raises(ValueError, match="Task 2 does not exist: the schedule has tasks 0 to 1"):
        evaluate_after_task(ground_truth, BASE_RESULTS, TASKS, 2)
    with pytest.raises(ValueError, match="`forgetting_videos` must be one of 'containing', 'all', got 'some'"):
        evaluate_after_task(ground_truth, BASE_RESULTS, TASKS, 0, "some")
    evaluation = evaluate_after_task(ground_truth, BASE_RESULTS, TASKS, 0)
    with pytest.raises(
        ValueError, match=r"Expected one evaluation after each of 2 tasks, in order, got evaluations after tasks \[0\]"
    ):
        ContinualReport(TASKS, [evaluation])
    with pytest.raises(ValueError, match="`evaluate_classes` must be one of 'seen', 'all', 'current', got 'old'"):
        ContinualReport(TASKS[:1], [evaluation], evaluate_classes="old")
