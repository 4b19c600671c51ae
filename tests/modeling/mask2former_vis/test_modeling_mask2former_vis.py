# SPDX-License-Identifier: Apache-2.0
"""Mask2Former-VIS: tests beyond the common ones."""

import json

import pytest
import torch

from tests.support.clip_tests import ClipDetectorTests, detector_settings
from tests.support.helpers import tiny_genvis
from tests.support.video_data import loss_of, predictions, video_batch, video_labels
from transformers_cvis import (
    FrameDetector,
    Mask2FormerVisForVideoInstanceSegmentation,
    MinVisConfig,
    MinVisForVideoInstanceSegmentation,
    SpvisConfig,
    SpvisForVideoInstanceSegmentation,
)


class TestMask2FormerVis(ClipDetectorTests):
    model_class = Mask2FormerVisForVideoInstanceSegmentation

    def test_loads_a_mask2former_checkpoint_of_the_hub(self, mask2former_on_the_hub):
        model, info = self.model_class.from_pretrained(mask2former_on_the_hub, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert model.config.model_type == "mask2former_vis"
        assert list(model.config.id2label.values()) == ["person", "dog"]
        detector = FrameDetector.from_pretrained(mask2former_on_the_hub)
        for name, tensor in detector.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor), name

    def test_loads_a_checkpoint_for_videos(self, tmp_path):
        model = self.model()
        model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        for name in ("max_clip_frames", "window_overlap", "score_rule", "detector_chunk_size"):
            del config[name]
        (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "video_mask2former"}))
        loaded = self.model_class.from_pretrained(tmp_path)
        for ours, theirs in zip(predictions(loaded(video_batch())), predictions(model(video_batch())), strict=True):
            assert torch.equal(ours, theirs)

    def test_starts_from_systems_that_hold_a_frame_detector(self, tmp_path):
        minvis = MinVisForVideoInstanceSegmentation(MinVisConfig(**detector_settings()))
        minvis.save_pretrained(tmp_path / "minvis")
        _, info = self.model_class.from_pretrained(tmp_path / "minvis", output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        other = SpvisForVideoInstanceSegmentation(SpvisConfig(**detector_settings()))
        other.save_pretrained(tmp_path / "spvis")
        _, info = self.model_class.from_pretrained(tmp_path / "spvis", output_loading_info=True)
        assert not info["missing_keys"]
        assert all(name.startswith("tracker.") for name in info["unexpected_keys"])
        tiny_genvis().save_pretrained(tmp_path / "genvis")
        with pytest.raises(
            ValueError, match="is a 'genvis' model. A 'mask2former_vis' model loads its own checkpoints, or"
        ):
            self.model_class.from_pretrained(tmp_path / "genvis")

    @torch.no_grad()
    def test_a_video_of_one_frame_is_an_image(self):
        """With one frame the temporal position shifts all keys alike, which does not change attention."""
        model = self.model()
        frame = video_batch(1)
        detected = FrameDetector.forward(model, frame[:, 0], output_predictions=True)
        output = model(frame)
        torch.testing.assert_close(output.class_queries_logits, detected.class_queries_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            output.masks_queries_logits[:, :, 0], detected.masks_queries_logits, rtol=1e-4, atol=1e-4
        )

    def test_losses_of_every_prediction(self):
        kinds = ("loss_ce", "loss_mask", "loss_dice")
        losses = self.model().train()(video_batch(), labels=video_labels()).loss_dict
        assert set(losses) == {f"{kind}{suffix}" for kind in kinds for suffix in ("", "_0", "_1")}
        last = self.model(use_auxiliary_loss=False).train()(video_batch(), labels=video_labels()).loss_dict
        assert set(last) == set(kinds)

    def test_all_parameters_train_with_frozen_batch_norms(self):
        model = self.model(freeze_batch_norm=True)
        loss_of(model).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
