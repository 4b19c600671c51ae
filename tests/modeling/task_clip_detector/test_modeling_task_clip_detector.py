# SPDX-License-Identifier: Apache-2.0
"""Clip detector that learns task by task: with prompts, without prompts, and as the base of CRISP."""

import json
from typing import ClassVar

import pytest
import torch

from tests.support.clip_tests import ClipDetectorTests
from tests.support.helpers import tiny_crisp, tiny_task_clip_detector
from tests.support.video_data import video_batch, video_labels
from transformers_cvis import (
    AutoModelForVideoInstanceSegmentation,
    CrispForVideoInstanceSegmentation,
    TaskClipDetectorForVideoInstanceSegmentation,
)

MOON = 3  # class
WITHOUT_COMPONENTS = {"residual_prompts": False, "lambda_isc": 0.0, "lambda_ic": 0.0, "prompt_init": "mean"}


class TestTaskClipDetector(ClipDetectorTests):
    model_class = TaskClipDetectorForVideoInstanceSegmentation
    settings: ClassVar[dict] = {}
    class_head = "class_predictor.heads.1.2.0"
    num_class_rows = 3


def trainable(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def learn_moon(model, num_prompts=3):
    model.add_task(["moon"], num_prompts)
    return model


def moon_labels() -> list[dict]:
    return [{**label, "class_labels": torch.tensor([MOON, MOON])} for label in video_labels()]


def losses_of(model, labels=None) -> dict[str, torch.Tensor]:
    """Return the losses of a training step with fixed points."""
    torch.manual_seed(0)
    return model.train()(video_batch(), labels=labels or video_labels()).loss_dict


class TestPrompts:
    def test_a_later_task_trains_its_prompts_and_heads(self):
        model = learn_moon(tiny_task_clip_detector())
        prefixes = ("task_queries.0.", "class_predictor.heads.2.", "class_predictor.heads.0.")
        assert trainable(model) == {name for name, _ in model.named_parameters() if name.startswith(prefixes)}

    def test_crisp_without_its_components_computes_the_same(self):
        ours, crisp = learn_moon(tiny_task_clip_detector()), learn_moon(tiny_crisp(**WITHOUT_COMPONENTS))
        crisp.load_state_dict(ours.state_dict())
        for labels in (moon_labels(), moon_labels()):
            first, second = losses_of(ours, labels), losses_of(crisp, labels)
            assert first.keys() == second.keys()
            assert all(torch.equal(first[name], second[name]) for name in first)
        assert torch.equal(
            ours.eval()(video_batch()).masks_queries_logits, crisp.eval()(video_batch()).masks_queries_logits
        )

    @pytest.mark.parametrize("num_prompts", [3, 0], ids=["eclipse", "finetune"])
    def test_a_folder_saved_as_crisp_loads_in_both_classes(self, num_prompts, tmp_path):
        """Earlier versions saved ECLIPSE and the methods without prompts as `model_type: crisp`."""
        saved = learn_moon(tiny_crisp(**WITHOUT_COMPONENTS), num_prompts)
        saved.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        del config["behaviour"]  # a field of later versions
        (tmp_path / "config.json").write_text(json.dumps(config))
        expected = saved(video_batch())
        auto = AutoModelForVideoInstanceSegmentation.from_pretrained(tmp_path)
        assert isinstance(auto, CrispForVideoInstanceSegmentation)
        ours = TaskClipDetectorForVideoInstanceSegmentation.from_pretrained(tmp_path)
        assert ours.untrained_parts == ()
        for loaded in (auto, ours):
            output = loaded(video_batch())
            assert torch.equal(output.class_queries_logits, expected.class_queries_logits)
            assert torch.equal(output.masks_queries_logits, expected.masks_queries_logits)


class TestWithoutPrompts:
    """Methods without prompts: class heads grow, all weights train."""

    def model(self, **changes):
        return learn_moon(tiny_task_clip_detector(**changes), num_prompts=0)

    def test_all_weights_train(self):
        model = self.model()
        assert not model.learns_by_prompts
        assert model.group_widths == [5]
        assert model.config.task_prompt_counts == [0]
        assert model.config.task_class_counts == [3, 1]
        assert trainable(model) == {name for name, _ in model.named_parameters()}
        sum(losses_of(model, moon_labels()).values()).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_new_heads_are_fresh(self):
        no_object, _, moon = self.model().class_predictor.heads
        assert not torch.equal(moon[0][0].weight, no_object[0][0].weight)

    @torch.no_grad()
    def test_no_calibration(self):
        model = self.model()
        output = model(video_batch(), output_embeddings=True)
        assert torch.equal(output.class_queries_logits, model.class_predictor(output.video_queries))
        assert output.class_queries_logits.shape == (2, 5, 5)

    @torch.no_grad()
    def test_saved_whole(self, tmp_path):
        model = self.model()
        model.save_pretrained(tmp_path)
        loaded = TaskClipDetectorForVideoInstanceSegmentation.from_pretrained(tmp_path)
        assert trainable(loaded) == trainable(model)
        assert torch.equal(loaded(video_batch()).class_queries_logits, model(video_batch()).class_queries_logits)
        with pytest.raises(
            ValueError, match="trains all of its weights, so its tasks are not adapters: save the whole model"
        ):
            model.save_task_adapter(tmp_path / "adapter")

    def test_prompts_cannot_follow(self):
        with pytest.raises(ValueError, match="tasks of this model have no prompts, so a new one cannot have 3"):
            self.model().add_task(["sun"], 3)
