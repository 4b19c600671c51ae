# SPDX-License-Identifier: Apache-2.0
"""Groups of queries: isolation of tasks, the start of a new task, calibration."""

import pytest
import torch

from tests.support.helpers import tiny_detector_config
from transformers_cvis.modeling.hvpl.frame_detector import HvplFrameDetector
from transformers_cvis.modeling.tasks.queries import (
    GroupedQueries,
    GroupLayout,
    TaskClassPredictor,
    calibrate_class_logits,
)

NUM_QUERIES, NUM_CLASSES = 6, 4
REALISTIC_SIZES = {"hidden_dim": 256, "num_attention_heads": 8, "dim_feedforward": 2048, "decoder_layers": 4}


def detector(dtype: torch.dtype = torch.float32, num_queries: int = NUM_QUERIES, **sizes) -> HvplFrameDetector:
    torch.manual_seed(0)
    config = tiny_detector_config(num_queries=num_queries, **sizes)
    return HvplFrameDetector(config, [NUM_CLASSES], []).to(dtype).eval()


def add_random_task(model, num_classes: int, num_prompts: int) -> None:
    """Add a task whose weights differ from all others, as after training."""
    model.add_task(num_classes, num_prompts)
    with torch.no_grad():
        for parameter in [*model.task_queries[-1].parameters(), *model.class_predictor.heads[-1].parameters()]:
            parameter.add_(torch.randn_like(parameter))


def pyramid(dtype: torch.dtype, scale: int = 1, num_images: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = [(2 * scale * stride, 3 * scale * stride) for stride in (1, 2, 4)]
    return [torch.randn(num_images, 32, *size, generator=generator).to(dtype) for size in sizes]


def frame_level_outputs(model, scale: int = 1) -> list[torch.Tensor]:
    """Return queries and mask embeddings of every layer, `(N, F, C)` each, and raw class logits `(N, F, K + 1)`."""
    levels, groups = pyramid(model.dtype, scale), GroupedQueries(model.groups())
    mask_features = [model.model.pixel_level_module.decoder.mask_projection(level) for level in levels]
    queries, embeddings = model.decode(levels, mask_features, groups)
    last = queries[-1]
    return [*queries, *embeddings, groups.mask_embeddings(last), model.class_predictor(last, groups.layout)]


def assert_new_tasks_change_nothing(model, class_counts: tuple, prompt_counts: tuple, outputs) -> None:
    """Check that `outputs` of older queries, and of older classes in the last one, are bit-identical."""
    before = outputs()
    for num_classes, num_prompts in zip(class_counts, prompt_counts, strict=True):
        add_random_task(model, num_classes, num_prompts)
        after = outputs()
        *states, logits = before
        for number, (ours, theirs) in enumerate(zip(after, states, strict=False)):
            assert torch.equal(ours[:, : theirs.shape[1]], theirs), number
        _, num_queries, rows = logits.shape
        assert after[-1].shape == (2, num_queries + num_prompts, rows + num_classes)
        assert torch.equal(after[-1][:, :num_queries, : rows - 1], logits[..., :-1])
        assert torch.equal(after[-1][:, :num_queries, -1], logits[..., -1])  # no-object
        before = after


@pytest.mark.usefixtures("cpu_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("prompts", [(3, 3, 3), (5, 5, 5), (10, 10, 10), (1, 4, 4), (7, 2, 9)], ids=str)
@torch.no_grad()
def test_new_tasks_leave_older_groups_bit_identical_at_frame_level(dtype, prompts):
    model = detector(dtype)
    assert_new_tasks_change_nothing(model, (2, 1, 3), prompts, lambda: frame_level_outputs(model))


@pytest.mark.usefixtures("cpu_threads")
@pytest.mark.parametrize("prompts", [(10, 10, 10), (10, 15, 15)], ids=str)
@torch.no_grad()
def test_new_tasks_leave_older_groups_of_realistic_sizes_bit_identical(prompts):
    model = detector(num_queries=100, **REALISTIC_SIZES)
    assert_new_tasks_change_nothing(model, (5, 20, 5), prompts, lambda: frame_level_outputs(model, scale=3))


@torch.no_grad()
def test_group_equals_the_group_alone():
    model = detector(dtype=torch.float64)
    for _ in range(2):
        add_random_task(model, 2, 5)
    levels = pyramid(torch.float64)
    together = model.decode(levels, levels, GroupedQueries(model.groups()))[0][-1].split([6, 5, 5], dim=1)
    for group, expected in zip(model.groups(), together, strict=True):
        alone = model.decode(levels, levels, GroupedQueries([group]))[0][-1]
        torch.testing.assert_close(alone, expected)


def test_a_new_task_starts_from_the_base():
    model = detector()
    model.add_task(num_classes=3, num_prompts=5)
    base, group = model.groups()
    assert torch.equal(group.features, base.features.mean(0).expand(5, -1))
    for ours, theirs in zip(group.positions, base.positions, strict=True):
        assert torch.equal(ours, theirs.mean(0).expand(5, -1))
    for ours, theirs in zip(group.mask_embedder.parameters(), base.mask_embedder.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours is not theirs
    no_object, _, added = model.class_predictor.heads
    for ours, theirs in zip(added.parameters(), no_object.parameters(), strict=True):
        assert torch.equal(ours, theirs.expand_as(ours))
        assert ours is not theirs
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


@torch.no_grad()
def test_class_logits_do_not_depend_on_how_queries_are_grouped():
    torch.manual_seed(0)
    predictor = TaskClassPredictor(8, [4, 20, 3]).double()
    queries = torch.randn(2, 14, 8, dtype=torch.float64)
    torch.testing.assert_close(predictor(queries, GroupLayout([6, 3, 3, 2])), predictor(queries))


def test_groups_of_one_width_run_together():
    layout = GroupLayout([6, 5, 5, 5, 3, 5])
    assert [(run.width, run.num_groups, run.is_first) for run in layout.runs] == [
        (6, 1, True),
        (5, 3, False),
        (3, 1, False),
        (5, 1, False),
    ]
    states = torch.arange(29.0)[:, None].expand(2, 29, 4)
    parts = layout.split(states)
    assert [tuple(part.shape) for part in parts] == [(2, 6, 4), (3, 2, 5, 4), (1, 2, 3, 4), (1, 2, 5, 4)]
    assert parts[1][2, 1, 0, 0] == 16
    assert torch.equal(layout.join(parts), states)
    assert torch.equal(layout.apply(torch.neg, states), -states)
    assert GroupLayout([5, 5]).runs == [(5, 1, True), (5, 1, False)]  # the base is a separate run


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
    model, levels = detector(), pyramid(torch.float32)
    expected, _ = model.model.transformer_module(levels, levels)
    queries, _ = model.decode(levels, levels, GroupedQueries(model.groups()))
    for ours, theirs in zip(queries, expected, strict=True):
        assert torch.equal(ours, theirs)
