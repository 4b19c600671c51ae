"""SPVIS and DVIS, online and offline: what is their own beyond the common tests."""

import pytest
import torch
from helpers import tiny_detector_config
from modeling.model_tester import LABELS, CommonTests, loss_of, predictions, video_batch, video_labels

from transformers_cvis import MinVisConfig, MinVisForVideoInstanceSegmentation
from transformers_cvis.modeling.spvis import SpvisConfig, SpvisForVideoInstanceSegmentation
from transformers_cvis.modeling.spvis.modeling_spvis import join_class_logits


def detector_settings() -> dict:
    detector = tiny_detector_config(num_queries=5, freeze_batch_norm=False).to_dict()
    del detector["model_type"]
    return {**detector, "id2label": LABELS}


class SpvisTests(CommonTests):
    model_class = SpvisForVideoInstanceSegmentation
    nothing_frozen = {"freeze_detector": False, "freeze_tracker": False}

    def config(self, **changes):
        sizes = {"tracker_layers": 2, "tracker_dim_feedforward": 32, "filter_dim_feedforward": 32, "refiner_layers": 2}
        return SpvisConfig(**{**detector_settings(), **sizes, **self.settings, **changes})


class TestSpvisOnline(SpvisTests):
    @torch.no_grad()
    def test_clips_of_any_length_give_the_same_video(self):
        model = self.model()
        assert model.is_online
        video = video_batch(7, batch_size=1)
        logits, masks = predictions(model(video))
        for clip_length in (1, 3):
            clips = list(model.stream(video.split(clip_length, dim=1)))
            streamed = torch.cat([clip.masks_queries_logits for clip in clips], dim=2)
            torch.testing.assert_close(streamed, masks, rtol=1e-4, atol=1e-4)
            weights = torch.tensor([clip.masks_queries_logits.shape[2] for clip in clips]).view(-1, 1, 1, 1)
            mean = (weights * torch.stack([clip.class_queries_logits for clip in clips])).sum(0) / 7
            torch.testing.assert_close(mean, logits, rtol=1e-4, atol=1e-4)

    @torch.no_grad()
    def test_state_can_be_used_twice_and_keeps_one_frame(self):
        model = self.model()
        first, second = video_batch().split(2, dim=1)
        state = model(first).state
        for queries in (state.frame_queries, state.tracks):
            assert queries.shape == (2, 5, 32)
            assert queries.untyped_storage().nbytes() == queries.numel() * 4
        once, again = predictions(model(second, state=state)), predictions(model(second, state=state))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(once, again, strict=True))
        with pytest.raises(ValueError, match="`state` belongs to a batch of 2 videos, but .* holds 1"):
            model(second[:1], state=state)

    def test_starts_from_a_segmenter(self, tmp_path):
        torch.manual_seed(0)
        segmenter = MinVisForVideoInstanceSegmentation(MinVisConfig(**detector_settings()))
        segmenter.save_pretrained(tmp_path)
        model, info = SpvisForVideoInstanceSegmentation.from_pretrained(
            tmp_path, tracker_layers=1, output_loading_info=True
        )
        assert info["missing_keys"] and all(name.startswith("tracker.") for name in info["missing_keys"])
        assert torch.equal(model.class_predictor.weight, segmenter.class_predictor.weight)
        assert model.config.model_type == "spvis"

    def test_only_the_tracker_trains(self):
        trainable = {name.split(".")[0] for name, p in self.model().named_parameters() if p.requires_grad}
        assert trainable == {"tracker"}

    def test_matching_follows_the_detector_first(self):
        """The same weights and points, another matching."""
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
            ({"guided_share": 2}, "`guided_share` is a share in 0..1 of the training, got 2"),
            ({"filter": "coffee"}, "filter"),
            ({"refiner": "best"}, "refiner"),
        ],
    )
    def test_impossible_configurations(self, changes, message):
        with pytest.raises(Exception, match=message):
            self.config(**changes)


class TestSpvisOffline(SpvisTests):
    # Without dropout, so that two training steps can be compared.
    settings = {"refiner": "spvis", "refiner_dropout": 0.0}

    @torch.no_grad()
    def test_parts_of_a_video_give_what_the_whole_gives(self):
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
        with pytest.raises(ValueError, match="offline SPVIS takes a whole video at once and has no `state`"):
            self.model()(video_batch(), state=state)

    @pytest.mark.parametrize("joint", ["sequential", "interaction_only"])
    def test_other_joints_train(self, joint):
        model = self.model(joint=joint, gate="none", conv_residual=True)
        loss_of(model).backward()
        assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
        assert (model.refiner.joint == "interaction_only") != hasattr(model.refiner, "compensator")


class TestDvisOffline(SpvisTests):
    settings = {"filter": "referring", "alignment": "released", "refiner": "dvis"}


def test_joined_probabilities_are_the_larger_ones():
    first, second = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.0, 1.0, 4.0]])
    larger = torch.maximum(first.softmax(-1), second.softmax(-1))[..., :-1]
    torch.testing.assert_close(join_class_logits(first, second).softmax(-1)[..., :-1], larger)
    sure = join_class_logits(torch.tensor([9.0, 0.0, 0.0]), torch.tensor([0.0, 9.0, 0.0])).softmax(-1)
    torch.testing.assert_close(sure[:2], torch.tensor([0.5, 0.5]), rtol=1e-3, atol=1e-3)
