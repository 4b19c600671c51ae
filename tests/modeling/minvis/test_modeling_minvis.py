# SPDX-License-Identifier: Apache-2.0
"""MinVIS: tests beyond the common ones."""

import pytest
import torch

from tests.support.helpers import tiny_detector_config
from tests.support.model_tester import CommonTests, FrameByFrameTests
from tests.support.track_tests import UNNORMALIZED, assert_scores_are_class_probabilities, noise_video
from tests.support.video_data import LABELS, loss_of, predictions, video_batch, video_labels
from transformers_cvis import MinVisForVideoInstanceSegmentation, segment_video
from transformers_cvis.modeling.minvis import MinVisConfig, match_frame_queries


class TestMinVis(FrameByFrameTests, CommonTests):
    model_class = MinVisForVideoInstanceSegmentation

    def config(self, **changes):
        detector = tiny_detector_config(num_queries=5, freeze_batch_norm=False).to_dict()
        del detector["model_type"]
        return MinVisConfig(**{**detector, "id2label": LABELS, **self.settings, **changes})

    @torch.no_grad()
    def test_first_frame_equals_the_detector(self):
        model = self.model()
        frame = video_batch(1)
        output = model(frame)
        detected = super(MinVisForVideoInstanceSegmentation, model).forward(frame[:, 0], output_predictions=True)
        torch.testing.assert_close(output.class_queries_logits, detected.class_queries_logits)
        torch.testing.assert_close(output.masks_queries_logits[:, :, 0], detected.masks_queries_logits)

    @torch.no_grad()
    def test_shuffled_queries_change_nothing_but_the_order(self):
        """Tracks follow the queries, not their places: the learned queries of the same network are reordered."""
        model, shuffled = self.model(), self.model()
        order = torch.tensor([3, 0, 4, 1, 2])
        for table in ("queries_embedder", "queries_features"):
            weight = getattr(shuffled.model.transformer_module, table).weight
            weight.copy_(weight[order])
        video = video_batch()
        for ours, theirs in zip(predictions(shuffled(video)), predictions(model(video)), strict=True):
            torch.testing.assert_close(ours, theirs[:, order], rtol=1e-4, atol=1e-4)

    def test_every_frame_is_a_separate_image(self):
        """The loss of a clip equals that of its frames as a batch of images."""
        model = self.model().train()
        torch.manual_seed(0)
        together = model(video_batch(), labels=video_labels())
        frames = [
            {name: label[name][:, frame : frame + 1] if name != "class_labels" else label[name] for name in label}
            for label in video_labels()
            for frame in range(4)
        ]
        torch.manual_seed(0)
        apart = model(video_batch().flatten(0, 1)[:, None], labels=frames)
        assert together.loss_dict.keys() == apart.loss_dict.keys() >= {"loss_ce", "loss_mask", "loss_dice", "loss_ce_0"}
        for name, loss in together.loss_dict.items():
            torch.testing.assert_close(loss, apart.loss_dict[name], msg=name)

    def test_all_parameters_train_with_frozen_batch_norms(self):
        model = self.model(freeze_batch_norm=True)
        loss_of(model).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    @torch.no_grad()
    def test_scores_are_class_probabilities_of_the_mean_logits(self):
        model = self.model()
        tracks = assert_scores_are_class_probabilities(model)
        model.config.score_rule = "max_times_quality"
        rescored = segment_video(model, UNNORMALIZED, noise_video(5, 64, 96), threshold=None, top_k=15)
        assert [track.score for track in rescored.tracks] != [track.score for track in tracks]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"detector_chunk_size": 0}, "`detector_chunk_size` must be at least 1 frame, got 0"),
            ({"score_rule": "best"}, "score_rule"),
            ({"pre_norm": True}, "`pre_norm=True` is not supported"),
        ],
    )
    def test_impossible_configurations(self, changes, message):
        with pytest.raises(Exception, match=message):
            self.config(**changes)


class TestMatching:
    def test_follows_queries_through_permutations(self):
        generator = torch.Generator().manual_seed(0)
        tracks = torch.randn(2, 1, 8, 16, generator=generator) + 0.1 * torch.randn(2, 6, 8, 16, generator=generator)
        places = torch.stack([torch.randperm(8, generator=generator) for _ in range(12)]).view(2, 6, 8)
        order = match_frame_queries(tracks.take_along_dim(places.unsqueeze(-1), dim=2))
        followed = places.take_along_dim(order, dim=2)
        assert torch.equal(followed, followed[:, :1].expand(-1, 6, -1))
        assert torch.equal(order[:, 0], torch.arange(8).expand(2, -1))

    def test_length_of_queries_has_no_effect(self):
        queries = torch.randn(1, 3, 4, 8, generator=torch.Generator().manual_seed(0))
        lengths = torch.tensor([1.0, 100.0, 0.01]).view(1, 3, 1, 1)
        assert torch.equal(match_frame_queries(queries * lengths), match_frame_queries(queries))

    def test_queries_that_are_not_finite(self):
        with pytest.raises(ValueError, match="cannot be matched: they hold NaN or infinity"):
            match_frame_queries(torch.full((1, 2, 3, 4), torch.nan))
