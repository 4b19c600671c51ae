# SPDX-License-Identifier: Apache-2.0
"""HVPL's video head: isolation of the tasks over videos of any length, and its switches."""

import pytest
import torch

from tests.support.helpers import tiny_detector_config
from transformers_cvis.modeling.hvpl.configuration_hvpl import HvplConfig
from transformers_cvis.modeling.hvpl.video_head import HvplVideoHead
from transformers_cvis.modeling.tasks.queries import GroupLayout


def video_head(**changes) -> HvplVideoHead:
    torch.manual_seed(0)
    config = HvplConfig(
        **{
            "detector_config": tiny_detector_config(),
            "num_queries": 7,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "dim_feedforward": 32,
            "num_attention_heads": 2,
            "num_labels": 4,
            **changes,
        }
    )
    return HvplVideoHead(config).eval()


def add_random_task(head: HvplVideoHead, num_classes: int, num_prompts: int) -> None:
    head.add_task(num_classes, num_prompts)
    with torch.no_grad():
        for parameter in [*head.task_queries[-1].parameters(), *head.class_predictor.heads[-1].parameters()]:
            parameter.add_(torch.randn_like(parameter))


REALISTIC_SIZES = {
    "detector_config": tiny_detector_config(hidden_dim=256, mask_feature_size=256, num_queries=100),
    "num_queries": 100,
    "dim_feedforward": 2048,
    "num_attention_heads": 8,
}


def assert_new_tasks_change_nothing(head: HvplVideoHead, num_frames: int, prompts: tuple[int, ...]) -> None:
    detector = head.config.detector_config
    num_frame_queries = detector.num_queries
    all_frame_queries = torch.randn(2, num_frames, num_frame_queries + sum(prompts), detector.hidden_dim)
    all_frame_queries = all_frame_queries.to(head.queries_features.weight.dtype)

    def outputs():
        encoded, decoded = head(all_frame_queries[:, :, :num_frame_queries])
        queries = decoded.normalised[-1]
        layout = GroupLayout([len(group.features) for group in head.groups()])
        return encoded.transpose(1, 2), queries, head.mask_embeddings(queries), head.class_predictor(queries, layout)

    before = outputs()
    for num_prompts in prompts:
        add_random_task(head, 2, num_prompts)
        num_frame_queries += num_prompts
        after = outputs()
        for ours, theirs in zip(after[:3], before[:3], strict=True):
            assert ours.shape[1] == theirs.shape[1] + num_prompts
            assert torch.equal(ours[:, : theirs.shape[1]], theirs)
        _, num_queries, rows = before[3].shape
        assert after[3].shape == (2, num_queries + num_prompts, rows + 2)
        assert torch.equal(after[3][:, :num_queries, : rows - 1], before[3][..., :-1])
        assert torch.equal(after[3][:, :num_queries, -1], before[3][..., -1])  # no-object
        before = after


@pytest.mark.usefixtures("cpu_threads")
@pytest.mark.parametrize("prompts", [(5, 5, 5), (3, 5, 5)], ids=str)
@pytest.mark.parametrize("num_frames", [1, 2, 5, 16])
@torch.no_grad()
def test_new_tasks_leave_older_groups_bit_identical(num_frames, prompts):
    assert_new_tasks_change_nothing(video_head(), num_frames, prompts)


@pytest.mark.usefixtures("cpu_threads")
@pytest.mark.parametrize(
    "changes",
    [{"encoder": "attention"}, {"encoder": "attention", "encoder_window_size": 3}, {"scan_axes": "released"}],
    ids=["attention", "windows", "released axes"],
)
@pytest.mark.parametrize("num_frames", [1, 4])
@torch.no_grad()
def test_new_tasks_leave_older_groups_bit_identical_with_other_encoders(changes, num_frames):
    assert_new_tasks_change_nothing(video_head(**changes), num_frames, (3, 5, 5))


@pytest.mark.usefixtures("cpu_threads")
@torch.no_grad()
def test_new_tasks_leave_older_groups_bit_identical_in_double_precision():
    assert_new_tasks_change_nothing(video_head().double(), 5, (4, 4, 7))


@pytest.mark.usefixtures("cpu_threads")
@pytest.mark.parametrize("num_frames", [1, 6])
@torch.no_grad()
def test_new_tasks_leave_older_groups_bit_identical_with_realistic_sizes(num_frames):
    assert_new_tasks_change_nothing(video_head(**REALISTIC_SIZES), num_frames, (10, 10, 20))


@pytest.mark.parametrize(
    "switch", [{"scan_axes": "released"}, {"encoder_slices": "joint"}, {"cross_tokens": "released"}], ids=str
)
@torch.no_grad()
def test_released_switches_differ(switch):
    correct, released = video_head(), video_head(**switch)
    frame_queries = torch.randn(1, 3, 6 + 5, 32)
    for head in (correct, released):
        torch.manual_seed(1)
        add_random_task(head, 2, 5)
    released.load_state_dict(correct.state_dict())
    ours, theirs = (head(frame_queries).decoded.normalised for head in (correct, released))
    assert not torch.allclose(ours, theirs, atol=1e-4)


@torch.no_grad()
def test_joint_slices_let_a_new_task_change_older_ones():
    head = video_head(encoder_slices="joint")
    frame_queries = torch.randn(1, 3, 6 + 5, 32)
    before = head(frame_queries[:, :, :6]).decoded.normalised
    add_random_task(head, 2, 5)
    assert not torch.allclose(head(frame_queries).decoded.normalised[:, :, :7], before, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_class_counts": [3, 2], "task_prompt_counts": [5]}, "add up to the 4 classes"),
        ({"task_class_counts": [2, 2]}, "at least 1 for each of the 1 tasks after the base"),
        ({"calibration_deltas": []}, "`calibration_deltas` must hold at least 1 number"),
        ({"scan_axes": "queries"}, "scan_axes"),
        ({"encoder": "attention", "encoder_slices": "joint"}, '`encoder_slices="joint"` needs `encoder="tree"`'),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(Exception, match=message):
        video_head(**changes)
