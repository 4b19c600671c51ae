"""Groups of queries: isolation of the tasks, what a new task starts from, calibration."""

import pytest
import torch
from helpers import tiny_detector_config

from transformers_cvis.modeling.hvpl.frame_detector import HvplFrameDetector
from transformers_cvis.modeling.task_queries import (
    GroupedQueries,
    GroupLayout,
    TaskClassPredictor,
    calibrate_class_logits,
)


def detector(dtype: torch.dtype = torch.float32) -> HvplFrameDetector:
    torch.manual_seed(0)
    return HvplFrameDetector(tiny_detector_config(num_queries=6), [4], []).to(dtype).eval()


def add_random_task(model, num_classes: int, num_prompts: int) -> None:
    """A task whose weights differ from all others, as after training."""
    model.add_task(num_classes, num_prompts)
    with torch.no_grad():
        for parameter in [*model.task_queries[-1].parameters(), *model.class_predictor.heads[-1].parameters()]:
            parameter.add_(torch.randn_like(parameter))


def frame_level_outputs(model) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(2, 32, 2 * s, 3 * s, generator=generator).to(model.dtype) for s in (1, 2, 4)]
    groups = GroupedQueries(model.groups())
    queries, embeddings = model.decode(levels, levels, groups)
    last = queries[-1]
    return [last, groups.mask_embeddings(last)[:, : last.shape[1]], *queries[:-1], *embeddings]


@pytest.mark.usefixtures("one_cpu_thread")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("num_prompts", [3, 5, 10])
@torch.no_grad()
def test_new_tasks_leave_older_groups_bit_identical_at_frame_level(dtype, num_prompts):
    model = detector(dtype=dtype)
    before = frame_level_outputs(model)
    logits_before = model.class_predictor(before[0])
    classes, queries = 4, 6
    for num_classes in (2, 1, 3):
        add_random_task(model, num_classes, num_prompts)
        after = frame_level_outputs(model)
        for ours, theirs in zip(after, before, strict=True):
            assert torch.equal(ours[:, :queries], theirs)
        logits = model.class_predictor(after[0])
        assert torch.equal(logits[:, :queries, :classes], logits_before[..., :classes])
        before, logits_before = after, logits
        classes, queries = classes + num_classes, queries + num_prompts
        assert logits.shape == (2, queries, classes + 1)


@torch.no_grad()
def test_a_group_computes_what_it_computes_alone():
    model = detector(dtype=torch.float64)
    for _ in range(2):
        add_random_task(model, 2, 5)
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(2, 32, 2 * s, 3 * s, generator=generator).double() for s in (1, 2, 4)]
    together = model.decode(levels, levels, GroupedQueries(model.groups()))[0][-1].split([6, 5, 5], dim=1)
    for group, expected in zip(model.groups(), together, strict=True):
        alone = model.decode(levels, levels, GroupedQueries([group], alignment=1))[0][-1]
        torch.testing.assert_close(alone, expected)


def test_a_new_task_starts_from_the_base():
    model = detector()
    model.add_task(num_classes=3, num_prompts=5)
    base, group = model.groups()
    assert torch.equal(group.features, base.features.mean(0).expand(5, -1))
    for ours, theirs in zip(group.positions, base.positions, strict=True):
        assert torch.equal(ours, theirs.mean(0).expand(5, -1))
    for ours, theirs in zip(group.mask_embedder.parameters(), base.mask_embedder.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours is not theirs
    no_object, _, added = model.class_predictor.heads
    for ours, theirs in zip(added.parameters(), no_object.parameters(), strict=True):
        assert torch.equal(ours, theirs.expand_as(ours)) and ours is not theirs
    assert model.class_predictor(torch.randn(7, 32)).shape == (7, 8)


@pytest.mark.parametrize("deep", [True, False])
@torch.no_grad()
def test_class_logits_are_those_of_the_heads_with_no_object_last(deep):
    torch.manual_seed(0)
    predictor = TaskClassPredictor(8, [4, 1, 3], deep).double()
    queries = torch.randn(2, 5, 8, dtype=torch.float64)
    no_object, *tasks = predictor.heads
    expected = torch.cat([head(queries) for head in (*tasks, no_object)], dim=-1)
    torch.testing.assert_close(predictor(queries), expected)


def test_groups_of_one_width_run_together():
    layout = GroupLayout([6, 5, 5, 5, 3, 5])
    assert layout.runs == [(6, 1), (5, 3), (3, 1), (5, 1)]
    assert layout.num_rows == 32
    states = torch.arange(29.0)[:, None].expand(2, 29, 4)
    runs = layout.by_run(layout.pad(states))
    assert [tuple(run.shape) for run in runs] == [(2, 1, 6, 4), (2, 3, 5, 4), (2, 1, 3, 4), (2, 1, 5, 4)]
    assert runs[1][0, 2, 0, 0] == 16


def test_calibration():
    logits = torch.tensor([[1.0, 2.0, -1.0, 0.5], [0.3, -0.2, 1.5, 0.1]], dtype=torch.float64)

    def calibrate(*deltas):
        return calibrate_class_logits(logits, [1, 1], [2, 1], deltas)

    unchanged = calibrate(0.0)
    assert unchanged.tolist() == [[1.0, 2.0, -10.0, 0.5], [-10.0, -10.0, 1.5, 0.1]]
    summed = calibrate(0.4, 0.5)[:, -1].sigmoid()
    assert summed[0].item() == pytest.approx(0.4 * logits[0, 2].sigmoid().item())
    assert summed[1].item() == pytest.approx(0.5)  # the two others sum to more than one
    scaled = calibrate(-0.6)[:, -1].sigmoid()  # continued for the second task
    torch.testing.assert_close(scaled, 0.6 * logits[:, -1].sigmoid())
    assert calibrate_class_logits(logits, [2], [3], [0.4]) is logits


@torch.no_grad()
def test_the_base_is_the_frame_detector():
    model = detector(dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(2, 32, 2 * s, 3 * s, generator=generator).double() for s in (1, 2, 4)]
    expected, _ = model.model.transformer_module(levels, levels)
    for alignment in (1, 8):
        queries, _ = model.decode(levels, levels, GroupedQueries(model.groups(), alignment))
        for ours, theirs in zip(queries, expected, strict=True):
            torch.testing.assert_close(ours, theirs)
