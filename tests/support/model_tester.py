# SPDX-License-Identifier: Apache-2.0
"""Common tests of all video models. A system gives parameters; one with a video head, for example:

class TestVita(VideoModelTests):
    model_class = VitaForVideoInstanceSegmentation
    settings: ClassVar[dict] = {"encoder_window_size": 2}
"""

import json
import logging
import re
from dataclasses import fields
from typing import ClassVar

import pytest
import torch
from transformers import AutoConfig

from tests.support.convention_tests import ConventionTests
from tests.support.helpers import VIDEO_HEAD_SIZES, tiny_detector_config
from tests.support.track_tests import TrackTests
from tests.support.training_tests import TrainingTests
from tests.support.video_data import LABELS, loss_of, predictions, video_batch, video_labels
from transformers_cvis import AutoModelForVideoInstanceSegmentation


class CommonTests(ConventionTests, TrackTests, TrainingTests):
    """Common tests of the models of `AutoModelForVideoInstanceSegmentation`.

    A model has 5 queries, the classes `LABELS`, and otherwise the sizes of `tiny_detector_config`.
    """

    model_class: type
    settings: ClassVar[dict] = {}
    """Fields of the configuration beyond those of `config()`."""
    class_head = "class_predictor"
    """Last layer of the class head, by its path in the model or in its video head."""
    num_class_rows = 4
    """Number of its rows: the classes, and no-object unless a separate head predicts it."""
    class_parts: ClassVar[set] = {"class_predictor"}
    """Modules that a model initialises again for other classes, by a part of their paths."""
    nothing_frozen: ClassVar[dict] = {}
    """Fields of the configuration with which every parameter trains."""

    def config(self, **changes):
        """Return the configuration of a tiny model."""
        raise NotImplementedError

    @pytest.fixture
    def warnings_of_transformers(self, caplog, monkeypatch):
        """Return a function that returns the warnings of the loggers of transformers."""
        for name in ("transformers", "transformers_cvis"):
            monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        return lambda: caplog.text

    def model(self, seed: int = 0, **changes):
        torch.manual_seed(seed)
        return self.model_class(self.config(**changes)).eval()

    # Saving and loading

    @torch.no_grad()
    def test_saved_model_is_the_same_model(self, tmp_path):
        model = self.model()
        model.save_pretrained(tmp_path)
        loaded, info = self.model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert not loaded.training
        assert not loaded.untrained_parts
        assert type(AutoModelForVideoInstanceSegmentation.from_pretrained(tmp_path)) is self.model_class
        trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        assert trainable == {name: parameter.requires_grad for name, parameter in loaded.named_parameters()}
        pixel_values = video_batch()
        for ours, theirs in zip(predictions(loaded(pixel_values)), predictions(model(pixel_values)), strict=True):
            assert torch.equal(ours, theirs)

    def test_revisions_of_the_hub(self, loopback_hub):
        main, other = self.model(seed=0), self.model(seed=1)
        main.push_to_hub("tester/video-model")
        other.push_to_hub("tester/video-model", revision="task-1")
        for revision, pushed in (("main", main), ("task-1", other)):
            loaded = AutoModelForVideoInstanceSegmentation.from_pretrained("tester/video-model", revision=revision)
            assert type(loaded) is self.model_class
            for name, tensor in loaded.state_dict().items():
                assert torch.equal(tensor, pushed.state_dict()[name]), name

    def test_another_number_of_classes_is_an_error(self, tmp_path):
        self.model().save_pretrained(tmp_path)
        more = {**LABELS, 3: "moon"}
        old, new = self.num_class_rows, self.num_class_rows + 1
        head = re.escape(self.class_head)
        with pytest.raises(ValueError, match=rf"{head}\.weight: checkpoint \({old}, 32\), model \({new}, 32\)"):
            self.model_class.from_pretrained(tmp_path, id2label=more)
        fresh = self.model_class.from_pretrained(tmp_path, id2label=more, ignore_mismatched_sizes=True).eval()
        assert fresh(video_batch()).class_queries_logits.shape[-1] == 5
        assert fresh.untrained_parts
        assert all(self.class_parts & set(part.split(".")) for part in fresh.untrained_parts)
        with pytest.raises(
            ValueError, match=r"cannot be used for inference: .*class_predictor.* Train the model first"
        ):
            fresh.check_trained()

    def test_corrupt_weights_are_an_error(self, tmp_path):
        self.model().save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(OSError, match="weights of .* are corrupt or incomplete"):
            self.model_class.from_pretrained(tmp_path)

    # Configuration

    def test_configuration_round_trip(self, tmp_path):
        config = self.config()
        config.save_pretrained(tmp_path)
        loaded = AutoConfig.from_pretrained(tmp_path)
        assert type(loaded) is type(config)
        for field in fields(config):
            if field.name not in ("transformers_version", *config.sub_configs):
                assert getattr(loaded, field.name) == getattr(config, field.name), field.name
        for name in config.sub_configs:
            assert getattr(loaded, name).to_diff_dict() == getattr(config, name).to_diff_dict()
        assert loaded.label2id == {"disk": 0, "star": 1, "ring": 2}

    def test_saved_configuration_holds_only_known_keys(self, tmp_path):
        self.model().save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text())
        config = self.config()
        parts = [(config, saved)] + [(getattr(config, name), saved[name]) for name in config.sub_configs]
        parts = [(part, keys) for part, keys in parts if type(part).__module__.startswith("transformers_cvis")]
        for config, keys in parts:
            known = {field.name for field in fields(config)} | {"model_type", "output_attentions"}
            assert {key for key in keys if not key.startswith("_")} <= known

    def test_typo_in_a_configuration_is_reported(self, warnings_of_transformers):
        config = self.config(num_querys=3)
        assert "no field `num_querys`; its value is ignored. Did you mean 'num_queries'?" in warnings_of_transformers()
        assert not hasattr(config, "num_querys")

    def test_classes_follow_id2label(self):
        model = self.model(id2label={"0": "a", "1": "b"})
        assert model.config.num_labels == 2
        assert model.config.label2id == {"a": 0, "b": 1}
        assert model(video_batch()).class_queries_logits.shape[-1] == 3

    # Initialisation

    def test_initial_weights_follow_the_seed(self):
        first, same, other = (dict(self.model(seed).named_parameters()) for seed in (0, 0, 1))
        for name, parameter in first.items():
            assert torch.isfinite(parameter).all(), name
            assert torch.equal(parameter, same[name]), name
        assert any(not torch.equal(parameter, other[name]) for name, parameter in first.items())

    # Inference

    @torch.no_grad()
    def test_shapes(self):
        model = self.model()
        output = model(video_batch())
        assert output.class_queries_logits.shape == (2, 5, 4)
        assert output.masks_queries_logits.shape == (2, 5, 4, 16, 24)
        assert output.mask_features is None
        assert output.frame_queries is None
        full = model(video_batch(), output_embeddings=True)
        assert full.mask_features.shape == (2, 4, 32, 16, 24)
        self.assert_queries(full)

    def assert_queries(self, output):
        """Check the shapes of the queries that `output_embeddings` adds."""
        assert output.frame_queries.shape[:3] == (1, 2, 4)
        assert output.frame_queries.shape[4] == 32

    @torch.no_grad()
    def test_deterministic(self):
        model = self.model()
        for first, second in zip(predictions(model(video_batch())), predictions(model(video_batch())), strict=True):
            assert torch.equal(first, second)

    @torch.no_grad()
    def test_videos_of_a_batch_do_not_meet(self):
        model = self.model()
        pixel_values = video_batch()
        together = predictions(model(pixel_values))
        for video in range(2):
            alone = predictions(model(pixel_values[video : video + 1]))
            for ours, theirs in zip(together, alone, strict=True):
                torch.testing.assert_close(ours[video : video + 1], theirs, rtol=1e-4, atol=1e-4)

    @torch.no_grad()
    def test_videos_of_different_sizes_equal_each_alone(self):
        model = self.model()
        sizes = [(50, 70), (64, 96), (32, 90)]
        pixel_values, pixel_mask = torch.zeros(3, 2, 3, 64, 96), torch.zeros(3, 64, 96, dtype=torch.long)
        alone = []
        for video, (height, width) in enumerate(sizes):
            content = video_batch(2, height, width, 1)[0]
            pixel_values[video, :, :, :height, :width] = content
            pixel_mask[video, :height, :width] = 1
            own = torch.zeros(1, 2, 3, -(-height // 32) * 32, -(-width // 32) * 32)
            own[0, :, :, :height, :width] = content
            alone.append(model(own))
        output = model(pixel_values, pixel_mask=pixel_mask)
        assert output.masks_queries_logits.shape == (3, 5, 2, 16, 24)
        for video, (height, width) in enumerate(sizes):
            torch.testing.assert_close(
                output.class_queries_logits[video], alone[video].class_queries_logits[0], rtol=1e-4, atol=1e-4
            )

            def upsampled(logits, height=height, width=width):
                return torch.nn.functional.interpolate(logits, scale_factor=4, mode="bilinear")[..., :height, :width]

            torch.testing.assert_close(
                upsampled(output.masks_queries_logits[video]),
                upsampled(alone[video].masks_queries_logits[0]),
                rtol=1e-4,
                atol=1e-4,
            )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    @torch.no_grad()
    def test_dtypes(self, dtype, tmp_path):
        model = self.model()
        expected = predictions(model(video_batch()))
        model.to(dtype).save_pretrained(tmp_path)
        loaded = self.model_class.from_pretrained(tmp_path).eval()
        assert loaded.dtype == dtype
        streamed = list(loaded.stream(video_batch(batch_size=1).split(2, dim=1)))
        assert all(torch.isfinite(tensor).all() for output in streamed for tensor in predictions(output))
        for ours, theirs in zip(predictions(loaded(video_batch())), expected, strict=True):
            assert ours.dtype == dtype
            similarity = torch.nn.functional.cosine_similarity(ours.float().flatten(), theirs.flatten(), dim=0)
            assert similarity > 0.98

    def test_autocast_training(self):
        model = self.model()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model)
        loss.backward()
        assert torch.isfinite(loss)
        assert loss.dtype == torch.float32

    @torch.no_grad()
    def test_stream_covers_the_video(self):
        model = self.model()
        pixel_values = video_batch(5, batch_size=1)
        outputs = list(model.stream(iter(pixel_values.split(2, dim=1))))
        assert [output.masks_queries_logits.shape[2] for output in outputs] == [2, 2, 1]
        assert not any(output.masks_queries_logits.requires_grad for output in outputs)
        assert list(model.stream([])) == []
        with pytest.raises(ValueError, match=r"training mode; call `.eval\(\)`"):
            list(model.train().stream([pixel_values]))

    @torch.no_grad()
    def test_compiled_clip_step_is_one_graph(self):
        self.assert_compiled_equals_eager(backend="eager")

    @pytest.mark.slow
    @torch.no_grad()
    def test_compiled_clip_step_with_generated_code(self):
        self.assert_compiled_equals_eager(backend="inductor")

    def assert_compiled_equals_eager(self, backend: str):
        torch.compiler.reset()
        eager, compiled = self.model(), self.model()
        compiled.compile_clip_step(backend=backend)
        clips = video_batch(4, batch_size=1).split(1, dim=1)
        for ours, theirs in zip(compiled.stream(clips), eager.stream(clips), strict=True):
            for first, second in zip(predictions(ours), predictions(theirs), strict=True):
                torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)

    # Invalid input

    @pytest.mark.parametrize(
        ("pixel_values", "message"),
        [
            (torch.zeros(2, 3, 64, 96), r"shape \(batch_size, num_frames, 3, height, width\), got \(2, 3, 64, 96\)"),
            (torch.zeros(1, 0, 3, 64, 96), "has no frames"),
            (torch.zeros(1, 2, 3, 60, 96), "multiples of 32, got 60 x 96"),
            (torch.zeros(1, 2, 3, 64, 96, dtype=torch.uint8), "normalised floats, got torch.uint8"),
            (torch.full((1, 2, 3, 64, 96), torch.nan), "NaN or infinite"),
        ],
        ids=["dimensions", "no frames", "size", "dtype", "nan"],
    )
    def test_wrong_pixels(self, pixel_values, message):
        with pytest.raises(ValueError, match=message):
            self.model()(pixel_values)

    def test_wrong_masks_and_labels(self):
        model = self.model().train()
        with pytest.raises(ValueError, match=r"`pixel_mask` must have the shape \(2, 64, 96\)"):
            model(video_batch(), pixel_mask=torch.ones(2, 64, 64))
        with pytest.raises(ValueError, match="without any valid pixel"):
            model(video_batch(), pixel_mask=torch.zeros(2, 64, 96))
        with pytest.raises(ValueError, match="one dict per video: got 1 for 2"):
            model(video_batch(), labels=video_labels()[:1])
        for change, message in (
            ({"class_labels": torch.tensor([0, 9])}, r"holds \[9\], but the model knows the 3 classes"),
            ({"ids": torch.zeros(2, 3, dtype=torch.long)}, r"\['ids'\]` must have the shape \(2, 4\), got \(2, 3\)"),
            ({"masks": torch.zeros(2, 4, 32, 32)}, r"\['masks'\]` must have the shape \(2, 4, 64, 96\)"),
        ):
            labels = video_labels()
            labels[1].update(change)
            with pytest.raises(ValueError, match=message):
                model(video_batch(), labels=labels)
        labels = video_labels()
        del labels[0]["ids"]
        with pytest.raises(ValueError, match=r"`labels\[0\]` lacks \['ids'\]"):
            model(video_batch(), labels=labels)
        crowd = {
            "class_labels": torch.zeros(6, dtype=torch.long),
            "ids": torch.arange(6)[:, None].expand(6, 4),
            "masks": torch.ones(6, 4, 64, 96, dtype=torch.bool),
        }
        with pytest.raises(ValueError, match="has 6 objects, but the model has only 5"):
            model(video_batch(), labels=[crowd, crowd])


class FrameByFrameTests:
    """Further tests of online models that process frames one by one and average their class logits."""

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
            num_frames = torch.tensor([clip.masks_queries_logits.shape[2] for clip in clips])
            means = torch.stack([clip.class_queries_logits for clip in clips])
            mean = (num_frames.view(-1, 1, 1, 1) * means).sum(0) / 7
            torch.testing.assert_close(mean, logits, rtol=1e-4, atol=1e-4)

    @torch.no_grad()
    def test_state_can_be_used_twice_and_keeps_one_frame(self):
        model = self.model()
        first, second = video_batch().split(2, dim=1)
        state = model(first).state
        for queries in vars(state).values():
            assert queries.shape == (2, 5, 32)
            assert queries.untyped_storage().nbytes() == queries.numel() * 4
        once, again = predictions(model(second, state=state)), predictions(model(second, state=state))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(once, again, strict=True))
        with pytest.raises(ValueError, match="`state` belongs to a batch of 2 videos, but .* holds 1"):
            model(second[:1], state=state)


class VideoModelTests(CommonTests):
    """Common tests of models that consist of a frame detector and a video head."""

    nothing_frozen: ClassVar[dict] = {"freeze_detector": False}
    num_hidden_states = 2

    def config(self, **changes):
        return self.model_class.config_class(
            **{
                "detector_config": tiny_detector_config(freeze_batch_norm=False),
                **VIDEO_HEAD_SIZES,
                "id2label": LABELS,
                **self.settings,
                **changes,
            }
        )

    def test_typo_in_the_configuration_of_the_detector_is_reported(self, warnings_of_transformers):
        config = self.config(detector_config=tiny_detector_config(hiden_dim=5))
        assert "no field `hiden_dim`; its value is ignored. Did you mean 'hidden_dim'?" in warnings_of_transformers()
        assert not hasattr(config.detector_config, "hiden_dim")

    def test_classes_of_the_detector_follow_id2label(self):
        model = self.model(id2label={"0": "a", "1": "b"})
        assert model.detector.config.num_labels == 2

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_queries": 0}, "`num_queries` must be at least 1, got 0"),
            ({"num_attention_heads": 5}, r"hidden_dim` \(32\) must be a multiple of `num_attention_heads` \(5\)"),
            ({"encoder_window_size": -1}, "`encoder_window_size` must be 0"),
            ({"num_frame_query_layers": 99}, "`num_frame_query_layers` must lie between 1 and"),
            ({"num_queries": "many"}, "num_queries"),
        ],
    )
    def test_impossible_configurations(self, changes, message):
        with pytest.raises(Exception, match=message):
            self.config(**changes)

    def test_initialisation(self):
        model = self.model()
        head = model.video_head
        for table in (head.queries_features, head.queries_embedder, head.frame_queries_embedder):
            assert 0.7 < table.weight.std() < 1.3
        bound = (6 / (4 * 32)) ** 0.5
        attention = head.decoder.layers[0].self_attn
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            assert 0.9 * bound < projection.weight.abs().max() <= bound
            assert not projection.bias.any()
        assert attention.out_proj.weight.abs().max() > bound
        assert head.get_submodule(self.class_head).weight.abs().max() <= 32**-0.5
        assert not head.mask_projection.bias.any()
        assert not head.input_projection.bias.any()
        deformable = model.detector.model.pixel_level_module.decoder.encoder.layers[0].self_attn
        assert not deformable.sampling_offsets.weight.any()
        assert deformable.sampling_offsets.bias.abs().max() == 4

    def test_mask_projection_of_the_head_trains(self):
        assert self.model().video_head.mask_projection.weight.requires_grad

    def test_frozen_detector_builds_no_graph(self):
        model = self.model(freeze_detector=True)
        graphs, statistics = [], [buffer.clone() for buffer in model.detector.buffers()]
        model.detector.register_forward_hook(lambda *call: graphs.append(call[-1].fpn_features.requires_grad))
        loss_of(model).backward()
        assert graphs == [False]
        assert all(parameter.grad is None for parameter in model.detector.parameters())
        for before, after in zip(statistics, model.detector.buffers(), strict=True):
            assert torch.equal(before, after)

    @torch.no_grad()
    def test_embeddings_of_the_head(self):
        full = self.model()(video_batch(), output_embeddings=True)
        assert full.mask_embeddings.shape == (2, 5, 32)
        assert full.frame_similarity_embeddings.shape[1:] == full.encoded_frame_queries.shape[1:] == (4, 6, 32)
