# SPDX-License-Identifier: Apache-2.0
"""SPVIS and DVIS, online and offline: tests beyond the common ones."""

from typing import ClassVar

import pytest
import torch

from tests.support.helpers import tiny_detector_config
from tests.support.model_tester import CommonTests, FrameByFrameTests
from tests.support.video_data import LABELS, loss_of, predictions, video_batch, video_labels
from transformers_cvis import MinVisConfig, MinVisForVideoInstanceSegmentation
from transformers_cvis.modeling.spvis import SpvisConfig, SpvisForVideoInstanceSegmentation
from transformers_cvis.modeling.spvis.modeling_spvis import join_class_logits


def detector_settings() -> dict:
    detector = tiny_detector_config(num_queries=5, freeze_batch_norm=False).to_dict()
    del detector["model_type"]
    return {**detector, "id2label": LABELS}


class SpvisTests(CommonTests):
    model_class = SpvisForVideoInstanceSegmentation
    nothing_frozen: ClassVar[dict] = {"freeze_detector": False, "freeze_tracker": False}
    num_hidden_states = 2

    def config(self, **changes):
        sizes = {"tracker_layers": 2, "tracker_dim_feedforward": 32, "filter_dim_feedforward": 32, "refiner_layers": 2}
        return SpvisConfig(**{**detector_settings(), **sizes, **self.settings, **changes})


class TestSpvisOnline(FrameByFrameTests, SpvisTests):
    def test_starts_from_a_segmenter(self, tmp_path):
        torch.manual_seed(0)
        segmenter = MinVisForVideoInstanceSegmentation(MinVisConfig(**detector_settings()))
        segmenter.save_pretrained(tmp_path)
        model, info = SpvisForVideoInstanceSegmentation.from_pretrained(
            tmp_path, tracker_layers=1, output_loading_info=True
        )
        assert info["missing_keys"]
        assert all(name.startswith("tracker.") for name in info["missing_keys"])
        assert model.untrained_parts == ("tracker",)
        assert torch.equal(model.class_predictor.weight, segmenter.class_predictor.weight)
        assert model.config.model_type == "spvis"

    def test_only_the_tracker_trains(self):
        trainable = {name.split(".")[0] for name, p in self.model().named_parameters() if p.requires_grad}
        assert trainable == {"tracker"}

    def test_matching_follows_the_detector_first(self):
        """Weights and points are the same, the matching differs."""
        model = self.model()
        assert model.training_progress == 0
        guided = loss_of(model)
        model.set_training_progress(0.5)
        assert loss_of(model) != guided
        with pytest.raises(ValueError, match="in 0..1, got 2"):
            model.set_training_progress(2)

    def test_losses_of_every_layer(self):
        kinds = ["ce", "mask", "dice"]
        names = {f"loss_spvis_{kind}{layer}" for kind in kinds for layer in ("", "_0")}
        assert set(self.model().train()(video_batch(), labels=video_labels()).loss_dict) == names
        joint = self.model(freeze_detector=False).train()(video_batch(), labels=video_labels())
        assert names | {"loss_ce", "loss_mask_0"} <= set(joint.loss_dict)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"tracker_layers": 0}, "`tracker_layers` must be at least 1, got 0"),
            ({"guided_share": 2}, "`guided_share` must be a share in 0..1 of the training, got 2"),
            ({"filter": "coffee"}, "filter"),
            ({"class_targets": "coffee"}, "class_targets"),
            ({"refiner": "best"}, "refiner"),
        ],
    )
    def test_impossible_configurations(self, changes, message):
        with pytest.raises(Exception, match=message):
            self.config(**changes)


class TestSpvisOffline(SpvisTests):
    # Without dropout, so that two training steps can be compared.
    settings: ClassVar[dict] = {"refiner": "spvis", "refiner_dropout": 0.0}

    @torch.no_grad()
    def test_parts_of_a_video_equal_the_whole(self):
        model = self.model()
        assert not model.is_online
        video = video_batch(5, batch_size=1)
        logits, masks = predictions(model(video))
        parts = list(model.stream(video.split(2, dim=1)))
        torch.testing.assert_close(torch.cat([part.masks_queries_logits for part in parts], dim=2), masks)
        for part in parts:
            torch.testing.assert_close(part.class_queries_logits, logits)

    def test_has_no_state(self):
        state = TestSpvisOnline().model()(video_batch()).state
        with pytest.raises(ValueError, match="takes a whole video at once and has no `state`"):
            self.model()(video_batch(), state=state)

    @pytest.mark.parametrize("joint", ["sequential", "interaction_only"])
    def test_other_joints_train(self, joint):
        model = self.model(joint=joint, gate="none", conv_residual=True)
        loss_of(model).backward()
        assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
        assert (model.refiner.joint == "interaction_only") != hasattr(model.refiner, "compensator")

    @pytest.mark.parametrize("freeze_tracker", [True, False])
    def test_frozen_parts_build_no_graph(self, freeze_tracker):
        model, graphs = self.model(freeze_tracker=freeze_tracker).train(), []
        assert model.refiner.training
        assert not model.model.training
        for part in (model.model, model.tracker):
            norm = part.layer_norm if part is model.tracker else part.transformer_module.decoder.layernorm
            norm.register_forward_hook(lambda *call: graphs.append(call[-1].requires_grad))
        loss_of(model).backward()
        assert set(graphs) == {False} if freeze_tracker else graphs[-1] and not graphs[0]


class TestDvisOffline(SpvisTests):
    settings: ClassVar[dict] = {"filter": "referring", "alignment": "released", "refiner": "dvis"}


class TestReleasedClassTargets:
    """The released code takes the class of an object from the last frame of a clip."""

    @pytest.mark.parametrize("system", [TestSpvisOnline, TestSpvisOffline])
    def test_objects_absent_at_the_end_are_no_object(self, system):
        labels = video_labels()
        for label in labels:
            label["ids"][0, 2:], label["masks"][0, 2:] = -1, False  # gone before the second one appears
        losses = {}
        for class_targets in ("visible", "released"):
            model = system().model(class_targets=class_targets, guided_share=0.0)
            with torch.no_grad():  # every query predicts the class of the objects that leave, video by video
                for predictor in [module for name, module in model.named_modules() if name.endswith("class_predictor")]:
                    predictor.weight.zero_()
                    predictor.bias.copy_(torch.tensor([9.0, 9.0, 0.0, 0.0]))
            torch.manual_seed(0)
            losses[class_targets] = model.train()(video_batch(), labels=labels).loss_dict["loss_spvis_ce"]
        assert losses["released"] > 1.5 * losses["visible"]

    def test_an_object_of_the_last_frame_keeps_its_class(self):
        losses = [loss_of(TestSpvisOnline().model(class_targets=rule)) for rule in ("visible", "released")]
        assert torch.equal(*losses)


def test_joined_probabilities_are_the_larger_ones():
    first, second = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.0, 1.0, 4.0]])
    larger = torch.maximum(first.softmax(-1), second.softmax(-1))[..., :-1]
    torch.testing.assert_close(join_class_logits(first, second).softmax(-1)[..., :-1], larger)
    sure = join_class_logits(torch.tensor([9.0, 0.0, 0.0]), torch.tensor([0.0, 9.0, 0.0])).softmax(-1)
    torch.testing.assert_close(sure[:2], torch.tensor([0.5, 0.5]), rtol=1e-3, atol=1e-3)
