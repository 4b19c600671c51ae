# SPDX-License-Identifier: Apache-2.0
"""CRISP: learning task by task, and the effect of its components."""

from typing import ClassVar

import pytest
import torch

from tests.support.clip_tests import ClipDetectorTests
from tests.support.helpers import tiny_crisp
from tests.support.video_data import LABELS, loss_of, predictions, video_batch, video_labels
from transformers_cvis import CrispForVideoInstanceSegmentation, Mask2FormerVisForVideoInstanceSegmentation
from transformers_cvis.hub.card import CardInfo, model_card
from transformers_cvis.modeling.crisp import ClassTextEncoder, CrispConfig
from transformers_cvis.modeling.crisp.initialization import principal_rows

BASE, MOON = [0, 1, 2], 3  # classes
WITHOUT_COMPONENTS = {"residual_prompts": False, "lambda_isc": 0.0, "lambda_ic": 0.0, "prompt_init": "mean"}


class TestCrisp(ClipDetectorTests):
    model_class = CrispForVideoInstanceSegmentation
    settings: ClassVar[dict] = {"text_encoder": "random", "text_hidden_size": 32}
    class_head = "class_predictor.heads.1.2.0"
    num_class_rows = 3
    class_parts: ClassVar[set] = {"class_predictor", "class_tokens"}


def trainable(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def learn_moon(model, num_prompts=3):
    model.add_task(["moon"], num_prompts)
    return model


@torch.no_grad()
def change(parameters):
    for parameter in parameters.values():
        parameter.add_(torch.randn_like(parameter))


def moon_labels() -> list[dict]:
    return [{**label, "class_labels": torch.tensor([MOON, MOON])} for label in video_labels()]


def losses_of(model, labels=None) -> dict[str, torch.Tensor]:
    """Return the losses of a training step with fixed points."""
    torch.manual_seed(0)
    return model.train()(video_batch(), labels=labels or video_labels()).loss_dict


class TestTasks:
    @pytest.mark.usefixtures("cpu_threads")
    @pytest.mark.parametrize(
        ("num_frames", "window", "implementation"),
        [(1, 128, "sdpa"), (3, 128, "sdpa"), (6, 4, "sdpa"), (6, 4, "eager")],
    )
    @torch.no_grad()
    def test_a_new_task_leaves_what_older_ones_predict_bit_identical(self, num_frames, window, implementation):
        model = tiny_crisp(max_clip_frames=window, calibration_deltas=[0.0])
        model.set_attn_implementation(implementation)
        video, queries, classes = video_batch(num_frames), 5, 3
        before = model(video, output_embeddings=True)
        raw_before = model.class_predictor(before.video_queries)
        for names, num_prompts in ((["moon"], 3), (["sun", "sky"], 3), (["sea"], 4)):
            model.add_task(names, num_prompts)
            change(model.task_parameters(model.num_tasks - 1))
            after = model(video, output_embeddings=True)
            for name in ("video_queries", "mask_embeddings", "masks_queries_logits"):
                assert torch.equal(after[name][:, :queries], before[name]), name
            raw = model.class_predictor(after.video_queries)
            assert torch.equal(raw[:, :queries, :classes], raw_before[..., :classes])
            before, raw_before = after, raw
            queries, classes = queries + num_prompts, classes + len(names)
        assert model.group_widths == [5, 3, 3, 4]
        assert queries == before.video_queries.shape[1]

    @torch.no_grad()
    def test_tasks_predict_their_own_classes(self):
        model = learn_moon(tiny_crisp())
        logits = model(video_batch()).class_queries_logits
        assert logits.shape == (2, 8, 5)
        assert (logits[:, :5, MOON] == -10).all()
        assert (logits[:, 5:, BASE] == -10).all()
        quiet = learn_moon(tiny_crisp(calibration_deltas=[0.0]))(video_batch()).class_queries_logits
        assert torch.equal(quiet[..., :4], logits[..., :4])
        assert not torch.equal(quiet[..., 4], logits[..., 4])

    def test_a_new_task_trains_alone(self):
        model = tiny_crisp()
        assert trainable(model) == {name for name, _ in model.named_parameters()}
        base = trainable(model)
        model.add_task(["moon"])
        assert model.group_widths == [5, 3]
        assert set(model.task_parameters(1)) == {name for name, _ in model.named_parameters()} - base
        assert "class_tokens.1.weight" in model.task_parameters(1)
        assert trainable(model) == {*model.task_parameters(1), *model.no_object_parameters()}
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        sum(losses_of(model, moon_labels()).values()).backward()
        optimizer.step()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed == trainable(model)

    def test_a_second_task_freezes_the_first(self):
        model = learn_moon(tiny_crisp())
        model.add_task(["sun", "sky"], 4)
        assert trainable(model) == {*model.task_parameters(2), *model.no_object_parameters()}
        model.remove_task()
        assert trainable(model) == {*model.task_parameters(1), *model.no_object_parameters()}
        model.remove_task()
        assert trainable(model) == {name for name, _ in model.named_parameters()}
        assert model.config.id2label == LABELS

    @torch.no_grad()
    def test_a_model_of_several_tasks_is_saved_whole(self, tmp_path):
        model = learn_moon(tiny_crisp())
        model.add_task(["sun", "sky"], 4)
        model.save_pretrained(tmp_path)
        loaded, info = CrispForVideoInstanceSegmentation.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert loaded.config.task_class_counts == [3, 1, 2]
        assert loaded.config.task_prompt_counts == [3, 4]
        assert trainable(loaded) == trainable(model)
        for ours, theirs in zip(predictions(loaded(video_batch())), predictions(model(video_batch())), strict=True):
            assert torch.equal(ours, theirs)

    @torch.no_grad()
    def test_tasks_are_adapters(self, tmp_path):
        model = tiny_crisp()
        model.save_pretrained(tmp_path / "base")
        learn_moon(model)
        change(model.task_parameters(1))
        model.save_task_adapter(tmp_path / "task-1", base=tmp_path / "base")
        loaded = CrispForVideoInstanceSegmentation.from_pretrained(tmp_path / "task-1")
        expected, found = model.state_dict(), loaded.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
        loaded.set_task_adapters(0)
        assert loaded(video_batch()).class_queries_logits.shape == (2, 5, 4)
        loaded.set_task_adapters(1)
        assert torch.equal(loaded(video_batch()).class_queries_logits, model(video_batch()).class_queries_logits)

    def test_impossible_tasks_are_refused(self):
        model = tiny_crisp()
        with pytest.raises(ValueError, match=r"Classes \['disk'\] are known already or given twice"):
            model.add_task(["disk", "moon"], 3)
        with pytest.raises(
            ValueError, match="6 prompts are too many for 5 queries. Use fewer prompts, or set `config.lambda_ic` to 0"
        ):
            model.add_task(["moon"], 6)
        assert model.num_tasks == 1
        assert model.group_widths == [5]
        learn_moon(model)
        with pytest.raises(ValueError, match="tasks of this model have prompts, so a new one cannot have 0"):
            model.add_task(["sun"], 0)
        without = tiny_crisp(lambda_ic=0.0)
        learn_moon(without, num_prompts=6)
        assert without.group_widths == [5, 6]

    def test_number_of_prompts(self):
        assert CrispConfig().num_prompts == 10
        model = tiny_crisp(num_prompts="classes")
        model.add_task(["moon", "sun"])
        assert model.group_widths == [5, 2]

    def test_more_objects_than_prompts_train(self):
        model = learn_moon(tiny_crisp(), num_prompts=1)
        losses = losses_of(model, moon_labels())
        assert all(loss.isfinite() for loss in losses.values())
        assert losses["loss_mask"] > 0

    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_gradient_checkpointing_of_a_later_task(self, use_reentrant):
        plain, saving = (learn_moon(tiny_crisp()) for _ in range(2))
        saving.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        for model in (plain, saving):
            sum(losses_of(model, moon_labels()).values()).backward()
        for (name, expected), parameter in zip(plain.named_parameters(), saving.parameters(), strict=True):
            if expected.requires_grad:
                torch.testing.assert_close(parameter.grad, expected.grad, msg=name)

    def test_autocast_training_of_a_later_task(self):
        model = learn_moon(tiny_crisp())
        with torch.autocast("cpu", torch.bfloat16):
            losses = losses_of(model, moon_labels())
        loss = sum(losses.values())
        loss.backward()
        assert torch.isfinite(loss)
        assert loss.dtype == torch.float32

    @torch.no_grad()
    def test_compiled_step_with_tasks(self):
        torch.compiler.reset()
        eager, compiled = learn_moon(tiny_crisp()), learn_moon(tiny_crisp())
        compiled.compile_clip_step(backend="eager")
        for ours, theirs in zip(predictions(compiled(video_batch())), predictions(eager(video_batch())), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)

    @torch.no_grad()
    def test_the_base_is_mask2former_vis(self, tmp_path):
        model = tiny_crisp()
        settings = {name: value for name, value in model.config.to_dict().items() if name != "model_type"}
        config = Mask2FormerVisForVideoInstanceSegmentation.config_class(**settings)
        other = Mask2FormerVisForVideoInstanceSegmentation(config).eval()
        other.load_state_dict(model.state_dict(), strict=False)
        ours, theirs = model(video_batch()), other(video_batch())
        torch.testing.assert_close(ours.masks_queries_logits, theirs.masks_queries_logits)
        other.save_pretrained(tmp_path)
        started = CrispForVideoInstanceSegmentation.from_pretrained(
            tmp_path, text_encoder="random", text_hidden_size=32
        )
        assert set(started.untrained_parts) == {"class_predictor", "class_tokens"}


class TestComponents:
    def test_losses_of_the_base(self):
        names = set(losses_of(tiny_crisp()))
        kinds = {"loss_ce", "loss_mask", "loss_dice"}
        assert names == {
            *(f"{kind}{layer}" for kind in kinds for layer in ("", "_0", "_1")),
            *("loss_isc", "loss_ic", "loss_ic_0", "loss_ic_1"),
        }
        assert set(losses_of(tiny_crisp(lambda_isc=0.0))) == names - {"loss_isc"}
        assert set(losses_of(tiny_crisp(lambda_ic=0.0))) == {name for name in names if "ic" not in name.split("_")}

    def test_weights_of_the_losses(self):
        once, twice = losses_of(tiny_crisp()), losses_of(tiny_crisp(lambda_isc=6.0, lambda_ic=6.0))
        for name in ("loss_isc", "loss_ic", "loss_ic_1"):
            torch.testing.assert_close(twice[name], 2 * once[name])
        assert torch.equal(once["loss_ce"], twice["loss_ce"])

    def test_a_base_without_components(self):
        """Like the released scripts: the class tokens of the base stay unchanged."""
        model = tiny_crisp(apply_at_base=False)
        eclipse = tiny_crisp(**WITHOUT_COMPONENTS)
        eclipse.load_state_dict(model.state_dict(), strict=False)
        losses, plain = losses_of(model), losses_of(eclipse)
        assert losses.keys() == plain.keys()
        assert all(torch.equal(losses[name], plain[name]) for name in losses)
        assert not model.class_tokens[0].weight.requires_grad
        learn_moon(model)
        assert model.class_tokens[1].weight.requires_grad
        assert {"loss_isc", "loss_ic_1"} <= set(losses_of(model, moon_labels()))

    def test_residual_prompts_change_training_and_not_inference(self):
        with_prompts, without = tiny_crisp(), tiny_crisp(residual_prompts=False)
        without.load_state_dict(with_prompts.state_dict())
        for ours, theirs in zip(
            predictions(with_prompts(video_batch())), predictions(without(video_batch())), strict=True
        ):
            assert torch.equal(ours, theirs)
        first, second = losses_of(with_prompts), losses_of(without)
        assert first["loss_mask"] != second["loss_mask"]
        assert first["loss_isc"] == second["loss_isc"]
        assert first["loss_mask_0"] == second["loss_mask_0"]  # that of the learned queries

    @pytest.mark.parametrize(
        ("switch", "value", "changed"),
        [
            ("matching", "dot", "loss_isc"),
            ("isc_similarity", "cosine", "loss_isc"),
            ("deep_class_head", False, "loss_ce"),
        ],
    )
    def test_switches(self, switch, value, changed):
        default, other = tiny_crisp(), tiny_crisp(**{switch: value})
        other.load_state_dict(default.state_dict(), strict=False)
        lengths = torch.tensor([1.0, 30.0, 0.1])[:, None]
        for model in (default, other):
            prompts = model.semantic_prompts(0)
            model.semantic_prompts = lambda task, prompts=prompts: prompts * lengths
        assert losses_of(default)[changed] != losses_of(other)[changed]

    def test_released_supervision_of_later_tasks(self):
        base = losses_of(tiny_crisp(deep_supervision="released"))
        assert base.keys() == losses_of(tiny_crisp()).keys()
        every = losses_of(learn_moon(tiny_crisp()), moon_labels())
        released = losses_of(learn_moon(tiny_crisp(deep_supervision="released")), moon_labels())
        assert set(every) - set(released) == {"loss_ce_1", "loss_mask_1", "loss_dice_1"}
        torch.testing.assert_close(released["loss_ce_0"], every["loss_ce_0"])

    @pytest.mark.parametrize("reading", ["directions", "loadings", "released", "mean"])
    def test_initialisation_of_prompts(self, reading):
        model = tiny_crisp(prompt_init=reading)
        learn_moon(model)
        base = model.model.transformer_module.queries_features.weight
        expected = base.mean(0).expand(3, -1) if reading == "mean" else principal_rows(base, 3, reading)
        assert torch.equal(model.task_queries[0].features.weight, expected)
        positions = model.model.transformer_module.queries_embedder.weight.mean(0).expand(3, -1)
        assert all(torch.equal(table.weight, positions) for table in model.task_queries[0].positions)
        model.add_task(["sun"], 2)
        if reading != "mean":
            old = torch.cat([base, model.task_queries[0].features.weight])
            assert torch.equal(model.task_queries[1].features.weight, principal_rows(old, 2, reading))

    def test_target_of_the_correlations(self):
        model = tiny_crisp()
        assert torch.equal(model.correlation_target(5), torch.eye(5))
        learn_moon(model)
        base = model.model.transformer_module.queries_features.weight[:3]
        expected = torch.nn.functional.cosine_similarity(base[:, None], base[None], dim=2)
        torch.testing.assert_close(model.correlation_target(3), expected)

    def test_prompts_of_a_task_are_those_of_its_classes(self):
        model = learn_moon(tiny_crisp())
        encoder = model.text_encoder()
        for task, names in ((0, list(LABELS.values())), (1, ["moon"])):
            expected = encoder.encode(names, model.class_tokens[task].weight, 32)
            assert torch.equal(model.semantic_prompts(task), expected)


class TestTextEncoder:
    def test_none_is_an_error_in_training_alone(self):
        model = tiny_crisp(text_encoder=None)
        model(video_batch())
        with pytest.raises(ValueError, match="none is configured. Set `config.text_encoder` to a CLIP checkpoint"):
            losses_of(model)
        model.set_text_encoder(ClassTextEncoder.random(32, 64))
        losses_of(model)
        losses_of(tiny_crisp(text_encoder=None, residual_prompts=False, lambda_isc=0.0))

    def test_text_encoder_is_not_part_of_the_model(self):
        model = tiny_crisp()
        names = set(model.state_dict())
        losses_of(model)
        assert model.text_encoder() is model.text_encoder()
        assert set(model.state_dict()) == names
        assert not any("text" in name for name in names)
        note = "text encoder that turns class names into prompts in training is not part of the model"
        assert note in str(model_card(model, "crisp", CardInfo()))
        assert note not in str(model_card(tiny_crisp(**WITHOUT_COMPONENTS), "eclipse", CardInfo()))

    def test_a_folder(self, tmp_path):
        encoder = ClassTextEncoder.random(32, 64)
        encoder.model.save_pretrained(tmp_path)
        encoder.tokenizer.save_pretrained(tmp_path)
        ours, theirs = losses_of(tiny_crisp(text_encoder=str(tmp_path))), losses_of(tiny_crisp())
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    def test_of_another_width(self, tmp_path):
        encoder = ClassTextEncoder.random(48, 64)
        with pytest.raises(ValueError, match="token embeddings of 48 channels, .* this model have 32. Build the model"):
            tiny_crisp().set_text_encoder(encoder)
        encoder.model.save_pretrained(tmp_path)
        encoder.tokenizer.save_pretrained(tmp_path)
        model = tiny_crisp(text_encoder=str(tmp_path))
        for _ in range(2):
            with pytest.raises(ValueError, match="`text_hidden_size=48`"):
                losses_of(model)


class TestWithoutPrompts:
    def test_components_have_no_place_in_later_tasks(self):
        model = learn_moon(tiny_crisp(), num_prompts=0)
        assert not {"loss_isc", "loss_ic"} & set(losses_of(model, moon_labels()))
        assert not any(tokens.weight.requires_grad for tokens in model.class_tokens)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_class_counts": [2, 2]}, r"`task_class_counts` \[2, 2\] must be at least 1 each and add up to the 3"),
        ({"task_class_counts": [2, 1]}, r"`task_prompt_counts` \[\] must be at least 0 for each of the 1 tasks"),
        ({"task_class_counts": [1, 1, 1], "task_prompt_counts": [0, 3]}, "mixes tasks with prompts"),
        ({"calibration_deltas": []}, "`calibration_deltas` must hold at least one number"),
        ({"num_prompts": -1}, '`num_prompts` must be 0 or more, or "classes", got -1'),
        ({"lambda_ic": -1.0}, "`lambda_ic` must be at least 0, got -1"),
        ({"text_hidden_size": 0}, "`text_hidden_size` must be at least 1, got 0"),
        ({"matching": "best"}, "matching"),
        ({"prompt_init": "best"}, "prompt_init"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(Exception, match=message):
        CrispConfig(id2label=LABELS, **changes)


def test_losses_of_two_steps_fall():
    model = learn_moon(tiny_crisp())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    values = []
    for _ in range(10):
        loss = sum(losses_of(model, moon_labels()).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.8 * values[0]
    assert loss_of(model, seed=0).isfinite()
