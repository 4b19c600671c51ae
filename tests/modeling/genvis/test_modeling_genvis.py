# SPDX-License-Identifier: Apache-2.0
"""GenVIS: clips, state and memory."""

from typing import ClassVar

import pytest
import torch

from tests.support.model_tester import VideoModelTests
from tests.support.video_data import loss_of, predictions, video_batch, video_labels
from transformers_cvis import GenVisForVideoInstanceSegmentation, VitaForVideoInstanceSegmentation
from transformers_cvis.modeling.genvis.modeling_genvis import MemoryAttention, QueryMemory


class TestGenVis(VideoModelTests):
    model_class = GenVisForVideoInstanceSegmentation
    settings: ClassVar[dict] = {"clip_length": 2}

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"clip_length": 0}, "`clip_length` must be at least 1 frame, got 0"),
            ({"memory_size": 0}, "`memory_size` must be at least 1 clip, or None"),
            ({"uvla": "best"}, "'uvla' expected one of .*'paper', 'released'.*, got best"),
        ],
    )
    def test_impossible_clips(self, changes, message):
        with pytest.raises(Exception, match=message):
            self.config(**changes)

    def test_losses_of_every_clip(self):
        torch.manual_seed(0)
        output = self.model().train()(video_batch(), labels=video_labels())
        kinds = ["ce", "mask", "dice", "ce_0", "mask_0", "dice_0", "sim"]
        assert set(output.loss_dict) == {f"loss_genvis_{kind}_clip{clip}" for kind in kinds for clip in range(2)}
        with pytest.raises(ValueError, match="whole number of clips"):
            self.model(clip_length=3).train()(video_batch(), labels=video_labels())

    def test_gradients_flow_from_clip_to_clip(self):
        """Clips that read the memory train the projections that write it."""
        model = self.model()
        loss_of(model).backward()
        assert model.video_head.memory_attention.memory_value_projection.weight.grad.any()

    @torch.no_grad()
    def test_state_carries_batches_and_can_be_used_twice(self):
        model = self.model()
        first, second = video_batch().split(2, dim=1)
        state = model(first).state
        once, again = predictions(model(second, state=state)), predictions(model(second, state=state))
        for ours, theirs in zip(once, again, strict=True):
            assert torch.equal(ours, theirs)
        assert not torch.equal(once[0], model(second).class_queries_logits)
        assert len(state.memory) == 1
        for video in range(2):
            alone = model(first[video : video + 1]).state
            expected = predictions(model(second[video : video + 1], state=alone))
            for ours, theirs in zip(once, expected, strict=True):
                torch.testing.assert_close(ours[video : video + 1], theirs, rtol=1e-4, atol=1e-4)
        with pytest.raises(ValueError, match="`state` belongs to a batch of 2 videos, but `pixel_values_videos`"):
            model(second[:1], state=state)

    @torch.no_grad()
    def test_memory_size_bounds_the_state(self):
        model = self.model(memory_size=2)
        assert model.is_online
        for index, output in enumerate(model.stream(video_batch(6, batch_size=1).split(1, dim=1)), start=1):
            memory = output.state.memory
            assert len(memory) == min(index, 2)
            assert memory._storage.entries.shape[3] <= 4

    @torch.no_grad()
    def test_a_clip_is_read_when_its_output_is_asked_for(self):
        read = []

        def clips():
            for index, clip in enumerate(video_batch(3, batch_size=1).split(1, dim=1)):
                read.append(index)
                yield clip

        stream = self.model().stream(clips())
        next(stream)
        assert read == [0]


def entry(value: float) -> torch.Tensor:
    return torch.full((2, 3, 4), value)


@pytest.mark.parametrize("max_clips", [None, 1, 3])
def test_memory_keeps_the_last_clips_in_order(max_clips):
    memories = [QueryMemory.empty_like(entry(0), max_clips)]
    for index in range(20):
        memories.append(memories[-1].append(entry(index), entry(-index)))
    for length, memory in enumerate(memories):
        kept = range(length) if max_clips is None else range(max(0, length - max_clips), length)
        assert memory.keys.shape == (2, 3, len(kept), 4)
        assert memory.keys[0, 0, :, 0].tolist() == list(kept)
        assert memory.values[1, 2, :, 3].tolist() == [-index for index in kept]


def test_memory_can_branch():
    trunk = QueryMemory.empty_like(entry(0)).append(entry(1), entry(1))
    left, right = trunk.append(entry(2), entry(2)), trunk.append(entry(3), entry(3))
    assert left.keys[0, 0, :, 0].tolist() == [1, 2]
    assert right.keys[0, 0, :, 0].tolist() == [1, 3]
    assert trunk.keys[0, 0, :, 0].tolist() == [1]


def test_memory_of_inference_mode_can_grow_outside_of_it():
    with torch.inference_mode():
        memory = QueryMemory.empty_like(entry(0)).append(entry(1), entry(1))
    assert memory.append(entry(2), entry(2)).keys[0, 0, :, 0].tolist() == [1, 2]


def test_growing_memory_copies_seldom():
    memory, storages = QueryMemory.empty_like(entry(0)), set()
    for index in range(1000):
        memory = memory.append(entry(index), entry(index))
        storages.add(memory._storage.entries.data_ptr())
    assert len(memory) == 1000
    assert len(storages) <= 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_memory_read_in_half_precision(dtype):
    """Unscaled products of large entries overflow float16 and are coarse in bfloat16; the weights stay exact."""
    torch.manual_seed(0)
    reader = MemoryAttention(64).to(dtype)
    queries = torch.randn(1, 4, 64).to(dtype) * 200
    memory = QueryMemory.empty_like(queries)
    for _ in range(3):
        memory = memory.append(torch.randn(1, 4, 64) * 200, torch.randn(1, 4, 64))
    read = reader(queries, memory.keys, memory.values)
    assert torch.isfinite(read.read).all()
    assert read.read.dtype == dtype
    torch.testing.assert_close(read.weights.sum(dim=-1), torch.ones(1, 4))
    assert not reader(queries, memory.keys[:, :, :0], memory.values[:, :, :0]).read.any()


def test_starts_from_a_vita(tmp_path):
    class Vita(VideoModelTests):
        model_class = VitaForVideoInstanceSegmentation

    vita = Vita().model()
    vita.save_pretrained(tmp_path)
    genvis, info = GenVisForVideoInstanceSegmentation.from_pretrained(
        tmp_path, config=TestGenVis().config(), output_loading_info=True
    )
    assert not info["unexpected_keys"]
    assert all(name.startswith("video_head.memory_attention.") for name in info["missing_keys"])
    weights = genvis.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in vita.state_dict().items())
