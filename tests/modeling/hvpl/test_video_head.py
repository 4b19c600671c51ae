"""HVPL's video head: isolation of the tasks over videos of any length, and its switches."""

import pytest
import torch
from helpers import tiny_detector_config

from transformers_cvis.modeling.hvpl.configuration_hvpl import HvplConfig
from transformers_cvis.modeling.hvpl.video_head import HvplVideoHead


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


@pytest.mark.usefixtures("one_cpu_thread")
@pytest.mark.parametrize("num_frames", [1, 2, 5])
@pytest.mark.parametrize("encoder", ["tree", "attention"])
@torch.no_grad()
def test_new_tasks_leave_older_groups_bit_identical(num_frames, encoder):
    head = video_head(encoder=encoder)
    all_frame_queries = torch.randn(2, num_frames, 6 + 3 + 5 + 5, 32)
    frame_queries, video_queries, classes = 6, 7, 4

    def outputs():
        encoded, decoded = head(all_frame_queries[:, :, :frame_queries])
        queries = decoded.normalised[-1]
        return encoded, queries, head.mask_embeddings(queries), head.class_predictor(queries)

    before = outputs()
    for num_prompts in (3, 5, 5):
        add_random_task(head, 2, num_prompts)
        old_frame_queries, old_video_queries, old_classes = frame_queries, video_queries, classes
        frame_queries, video_queries, classes = frame_queries + num_prompts, video_queries + num_prompts, classes + 2
        after = outputs()
        assert after[-1].shape == (2, video_queries, classes + 1)
        assert torch.equal(after[0][:, :, :old_frame_queries], before[0])
        for ours, theirs in zip(after[1:3], before[1:3], strict=True):
            assert torch.equal(ours[:, :old_video_queries], theirs)
        assert torch.equal(after[3][:, :old_video_queries, :old_classes], before[3][..., :old_classes])
        before = after


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
        ({"calibration_deltas": []}, "`calibration_deltas` must hold at least one number"),
        ({"scan_axes": "queries"}, "scan_axes"),
        ({"encoder": "attention", "encoder_slices": "joint"}, "a switch of the tree encoder"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(Exception, match=message):
        video_head(**changes)
