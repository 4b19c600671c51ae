# SPDX-License-Identifier: Apache-2.0
"""Common tests of the systems whose queries read a whole clip, in addition to those of every system."""

import logging
from itertools import pairwise

import pytest
import torch

from tests.support.helpers import tiny_detector_config
from tests.support.model_tester import CommonTests
from tests.support.track_tests import assert_scores_are_class_probabilities
from tests.support.video_data import LABELS, predictions, video_batch, video_labels
from transformers_cvis.modeling.clip_detector import windows


def detector_settings(**changes) -> dict:
    """Return the configuration fields of a tiny clip detector."""
    detector = tiny_detector_config(num_queries=5, freeze_batch_norm=False).to_dict()
    del detector["model_type"]
    return {**detector, "id2label": LABELS, **changes}


class ClipDetectorTests(CommonTests):
    @pytest.fixture(autouse=True)
    def nothing_was_warned_of(self):
        """Forget earlier warnings: a warning about windows appears only once."""
        logging.Logger.warning_once.cache_clear()

    def config(self, **changes):
        return self.model_class.config_class(**detector_settings(**{**self.settings, **changes}))

    def assert_queries(self, output):
        assert output.video_queries.shape == output.mask_embeddings.shape == (2, 5, 32)

    @pytest.fixture
    def memory(self, monkeypatch):
        """Return a function that sets the available memory which the model reads."""

        def set_available(size: int | None):
            monkeypatch.setattr(windows, "available_memory", lambda device: size)

        return set_available

    # One clip

    @torch.no_grad()
    @pytest.mark.parametrize("clip_length", [1, 2, 5])
    def test_parts_of_a_video_equal_the_whole(self, clip_length):
        model = self.model(detector_chunk_size=2)
        assert not model.is_online
        video = video_batch(5, batch_size=1)
        logits, masks = predictions(model(video))
        parts = list(model.stream(video.split(clip_length, dim=1)))
        streamed = torch.cat([part.masks_queries_logits for part in parts], dim=2)
        torch.testing.assert_close(streamed, masks, rtol=1e-4, atol=1e-4)
        for part in parts:
            torch.testing.assert_close(part.class_queries_logits, logits, rtol=1e-4, atol=1e-4)

    @torch.no_grad()
    def test_frames_of_a_clip_inform_each_other(self):
        model = self.model()
        video = video_batch(3, batch_size=1)
        changed = video.clone()
        changed[:, 2] *= -1
        before, after = model(video), model(changed)
        assert not torch.allclose(before.class_queries_logits, after.class_queries_logits)
        assert not torch.allclose(before.masks_queries_logits[:, :, 0], after.masks_queries_logits[:, :, 0])

    @torch.no_grad()
    def test_order_of_the_frames_counts(self):
        model = self.model()
        video = video_batch(3, batch_size=1)
        assert not torch.allclose(
            model(video.flip(1)).class_queries_logits, model(video).class_queries_logits, atol=1e-6
        )

    def test_has_no_state(self):
        with pytest.raises(ValueError, match="takes a whole video at once and has no `state`"):
            self.model()(video_batch(), state=object())

    @torch.no_grad()
    def test_scores_are_class_probabilities(self):
        assert assert_scores_are_class_probabilities(self.model())

    # Windows

    @torch.no_grad()
    def test_a_long_video_is_processed_in_windows(self, warnings_of_transformers):
        model = self.model(max_clip_frames=4, window_overlap=2, detector_chunk_size=3)
        video = video_batch(9, batch_size=1)
        model(video[:, :4])
        assert "windows" not in warnings_of_transformers()
        whole = model(video, output_embeddings=True)
        model(video)
        assert warnings_of_transformers().count("windows of 4 frames") == 1
        assert "more than `config.max_clip_frames` (4) frames" in warnings_of_transformers()
        assert "windows of 4 frames that share 2 (`config.window_overlap`)" in warnings_of_transformers()
        assert whole.masks_queries_logits.shape == (1, self.num_queries(model), 9, 16, 24)
        assert whole.mask_features.shape[1] == 9

        # windows start at frames 0, 2, 4, 6 and predict 4, 2, 2 and 1 frames
        answers = [model(video[:, start : start + 4]) for start in (0, 2, 4, 6)]
        torch.testing.assert_close(whole.masks_queries_logits[:, :, :4], answers[0].masks_queries_logits)
        order, logits = None, 4 * answers[0].class_queries_logits
        for start, count, answer in zip((2, 4, 6), (2, 2, 1), answers[1:], strict=True):
            masks = answer.masks_queries_logits[0, :, 2:]
            joined = whole.masks_queries_logits[0, :, start + 2 : start + 2 + count]
            distances = torch.cdist(joined.flatten(1), masks.flatten(1))
            order = distances.argmin(dim=1)
            assert sorted(order.tolist()) == list(range(len(order)))
            torch.testing.assert_close(joined, masks[order], rtol=1e-4, atol=1e-4)
            logits += count * answer.class_queries_logits[:, order]
        torch.testing.assert_close(whole.class_queries_logits, logits / 9, rtol=1e-4, atol=1e-4)

    def num_queries(self, model) -> int:
        return sum(model.group_widths)

    @torch.no_grad()
    @pytest.mark.parametrize("clip_length", [1, 3, 10])
    def test_windows_do_not_depend_on_stream_chunks(self, clip_length):
        model = self.model(max_clip_frames=4, window_overlap=1, detector_chunk_size=3)
        video = video_batch(10, batch_size=1)
        logits, masks = predictions(model(video))
        parts = list(model.stream(video.split(clip_length, dim=1)))
        assert [part.masks_queries_logits.shape[2] for part in parts] == [
            part.shape[1] for part in video.split(clip_length, dim=1)
        ]
        streamed = torch.cat([part.masks_queries_logits for part in parts], dim=2)
        torch.testing.assert_close(streamed, masks, rtol=1e-4, atol=1e-4)
        mean = sum(part.masks_queries_logits.shape[2] * part.class_queries_logits for part in parts) / 10
        torch.testing.assert_close(mean, logits, rtol=1e-4, atol=1e-4)

    @torch.no_grad()
    def test_a_stream_answers_before_a_long_video_ends(self):
        model = self.model(max_clip_frames=4, window_overlap=1)
        read = []

        def clips():
            for clip in video_batch(20, batch_size=1).split(1, dim=1):
                read.append(clip)
                yield clip

        next(model.stream(clips()))
        assert len(read) == 5

    @torch.no_grad()
    def test_tracks_go_on_where_queries_change_places(self):
        """The second window gets the frames of the first again, with the learned queries in another order."""
        model = self.model(max_clip_frames=4, window_overlap=2)
        video = video_batch(2, batch_size=1).repeat(1, 3, 1, 1, 1)
        decode, calls = model.decode, []

        def shuffled(features):
            queries, embeddings = decode(features)
            calls.append(1)
            if len(calls) == 2:
                order = torch.arange(queries[-1].shape[1])
                order[:5] = torch.tensor([3, 0, 4, 1, 2])
                queries = [states[:, order] for states in queries]
            return queries, embeddings

        expected = model(video)
        model.decode = shuffled
        output = model(video)
        assert len(calls) == 2
        for ours, theirs in zip(predictions(output), predictions(expected), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

    # Memory

    @torch.no_grad()
    def test_windows_shrink_to_the_available_memory(self, memory, warnings_of_transformers):
        model = self.model(detector_chunk_size=1)
        video = video_batch(6, batch_size=1)
        memory(None)
        model(video)
        memory(10**12)
        model(video)
        assert "windows" not in warnings_of_transformers()
        needed = model.clip_memory(3, 64, 96) / windows.MEMORY_SHARE + 100
        memory(int(needed))
        streamed = list(model.stream(video.split(2, dim=1)))
        assert [part.masks_queries_logits.shape[2] for part in streamed] == [2, 2, 2]
        assert "of which only 3 fit into the available memory at once" in warnings_of_transformers()
        assert "in windows of 3 frames that share 1" in warnings_of_transformers()

    @torch.no_grad()
    def test_too_little_memory_is_an_error_before_any_work(self, memory, monkeypatch):
        model = self.model()
        monkeypatch.setattr(model, "read_frames", None)
        memory(1000)
        with pytest.raises(
            MemoryError, match="clip of 2 frames of 64 x 96 needs about .*, but only 0.0 GB are available"
        ):
            model(video_batch())
        with pytest.raises(MemoryError, match="lower `config.detector_chunk_size`"):
            next(model.stream(video_batch(batch_size=1).split(2, dim=1)))

    def test_memory_grows_with_the_work(self):
        model = self.model(detector_chunk_size=1)
        sizes = [model.clip_memory(frames, 64, 96) for frames in (0, 1, 2, 3)]
        steps = [after - before for before, after in pairwise(sizes)]
        assert max(steps) - min(steps) <= 2
        assert min(steps) > 0
        assert model.clip_memory(4, 64, 96, batch_size=2) - sizes[0] == pytest.approx(8 * steps[0], abs=10)
        assert model.clip_memory(8, 128, 192) == pytest.approx(4 * model.clip_memory(8, 64, 96), abs=10)
        assert model.to(torch.float16).clip_memory(3, 64, 96) == pytest.approx(sizes[3] / 2, abs=1)

    # Training

    def test_classes_of_objects_that_leave(self):
        """Released training labels them no-object; objects that stay are labelled alike."""
        stays, leaves = video_labels(), video_labels()
        for label in leaves:
            label["ids"][1, -1] = -1
            label["masks"][1, -1] = False
        for labels, same in ((stays, True), (leaves, False)):
            losses = []
            for targets in ("visible", "released"):
                torch.manual_seed(0)
                losses.append(self.model(class_targets=targets).train()(video_batch(), labels=labels).loss_dict)
            assert torch.equal(losses[0]["loss_ce"], losses[1]["loss_ce"]) is same

    # Invalid input

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"detector_chunk_size": 0}, "`detector_chunk_size` must be at least 1 frame, got 0"),
            ({"max_clip_frames": 1}, "`max_clip_frames` must be at least 2 frames, got 1"),
            ({"window_overlap": 0}, "`window_overlap` must be at least 1 frames, got 0"),
            ({"score_rule": "best"}, "score_rule"),
            ({"pre_norm": True}, "`pre_norm=True` is not supported"),
        ],
    )
    def test_impossible_configurations(self, changes, message):
        with pytest.raises(Exception, match=message):
            self.config(**changes)
