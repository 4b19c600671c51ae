# SPDX-License-Identifier: Apache-2.0
"""Methods without prompts: losses on a real model, trainable parameters, saved files."""

import copy

import pytest
import torch

from tests.support.helpers import tiny_task_clip_detector
from tests.support.tiny_run import tiny_recipe
from tests.support.video_data import video_batch, video_labels
from transformers_cvis import AutoModelForVideoInstanceSegmentation, TaskClipDetectorForVideoInstanceSegmentation
from transformers_cvis.continual.distilling_model import PRESETS, DistillationSettings, DistillingModel
from transformers_cvis.data import make_moving_shapes
from transformers_cvis.processing import CvisVideoProcessor
from transformers_cvis.training.build import build_collate, build_dataset, build_model
from transformers_cvis.training.trainer import Trainer

SEGMENTATION = {f"loss_{kind}{layer}" for kind in ("ce", "mask", "dice") for layer in ("", "_0", "_1")}


def distilling(name: str = "comformer", **changes) -> DistillingModel:
    model = tiny_task_clip_detector()
    torch.manual_seed(1)
    return DistillingModel.add_task(model, ["moon"], DistillationSettings.preset(name, **changes))


def moon_labels() -> list[dict]:
    return [{**label, "class_labels": torch.tensor([3, 3])} for label in video_labels()]


def losses_of(model) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return model.train()(video_batch(), labels=moon_labels()).loss_dict


@pytest.mark.parametrize(
    ("name", "further"),
    [
        ("finetune", set()),
        ("mib", {"loss_class_distillation"}),
        ("comformer", {"loss_class_distillation"}),
        ("pod", {"loss_pod"}),
    ],
)
def test_presets(name, further):
    model = distilling(name)
    teacher = {key: tensor.clone() for key, tensor in model.teacher.state_dict().items()}
    losses = losses_of(model)
    assert set(losses) == SEGMENTATION | further
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.student.parameters())
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    assert all(torch.equal(tensor, teacher[key]) for key, tensor in model.teacher.state_dict().items())
    assert set(PRESETS) == {"finetune", "mib", "comformer", "pod"}


def test_finetuning_is_the_training_of_the_student():
    model = distilling("finetune")
    ours, student = losses_of(model), losses_of(model.student)
    assert all(torch.equal(ours[name], student[name]) for name in student)


def test_every_layer_and_masks():
    losses = losses_of(distilling("mib", every_layer=True, mask_weight=1.0))
    kinds = ("loss_class_distillation", "loss_mask_distillation")
    assert set(losses) == SEGMENTATION | {f"{kind}{layer}" for kind in kinds for layer in ("", "_0", "_1")}
    last = losses_of(distilling("mib", mask_weight=1.0))
    assert set(last) == SEGMENTATION | set(kinds)
    for kind in kinds:
        torch.testing.assert_close(last[kind], losses[kind])


def test_weights_of_the_losses():
    once = losses_of(distilling("mib", mask_weight=1.0, pod_weight=0.1))
    twice = losses_of(distilling("mib", distillation_weight=20.0, mask_weight=2.0, pod_weight=0.2))
    for name in ("loss_class_distillation", "loss_mask_distillation", "loss_pod"):
        torch.testing.assert_close(twice[name], 2 * once[name])
    assert torch.equal(once["loss_ce"], twice["loss_ce"])


def test_a_student_that_is_its_teacher():
    """Masks and maps equal the teacher's; only the new head makes a difference."""
    model = distilling("mib", mask_weight=1.0, pod_weight=1.0)
    losses = losses_of(model)
    assert losses["loss_pod"].item() == pytest.approx(0, abs=1e-5)
    entropy = losses["loss_mask_distillation"]
    with torch.no_grad():
        for parameter in model.student.model.transformer_module.decoder.mask_predictor.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    assert losses_of(model)["loss_mask_distillation"] > entropy


def test_unbiased_and_focal_classification():
    values = {kind: losses_of(distilling(classification=kind))["loss_ce"] for kind in ("ce", "unbiased", "focal")}
    assert len({value.item() for value in values.values()}) == 3


def test_pseudo_labels_reach_the_losses(monkeypatch):
    plain = losses_of(distilling("finetune"))
    model = distilling("finetune", pseudo_labels=True)
    counts, video_targets = [], model.student.video_targets

    def counted(labels):
        counts.append([len(label["class_labels"]) for label in labels])
        return video_targets(labels)

    monkeypatch.setattr(model.student, "video_targets", counted)
    with torch.no_grad():  # a teacher that is sure of a class of the base, and whose first query takes every pixel
        head = model.teacher.class_predictor.heads[1][2][0]
        head.bias[0] += 20
        queries = model.teacher.model.transformer_module
        for embedding in (queries.queries_features, queries.queries_embedder):
            embedding.weight[:] = embedding.weight[:1]
    labelled = losses_of(model)
    assert sum(counts[0]) > 4
    assert labelled["loss_mask"] != plain["loss_mask"]
    counts.clear()
    model.settings.pseudo_threshold = 1.0
    losses_of(model)
    assert counts[0] == [2, 2]


def test_the_teacher_stays_in_inference_mode():
    model = distilling().train()
    assert model.student.training
    assert not any(module.training for module in model.teacher.modules())
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())
    assert not model.eval().student.training


@torch.no_grad()
def test_student_predicts_and_is_saved(tmp_path):
    model = distilling().eval()
    assert model.config is model.student.config
    logits = model(video_batch()).class_queries_logits
    assert torch.equal(logits, model.student(video_batch()).class_queries_logits)
    model.save_pretrained(tmp_path)
    loaded, info = TaskClipDetectorForVideoInstanceSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(loaded(video_batch()).class_queries_logits, logits)


def test_autocast():
    model = distilling("mib", mask_weight=1.0, pod_weight=0.1, pseudo_labels=True)
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(model)
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()


def test_steps_reduce_the_loss():
    model = distilling()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    values = []
    for _ in range(8):
        loss = sum(losses_of(model).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert values[-1] < 0.9 * values[0]


def test_the_trainer_takes_it_as_any_model(tmp_path):
    data = make_moving_shapes(tmp_path / "data", 2, 1, num_frames=3, size=(64, 96), seed=0, categories=["star", "ring"])
    recipe = tiny_recipe(data, "task_clip_detector", max_steps=2, checkpoint_every=2)
    dataset, names = build_dataset(recipe)
    base = build_model(recipe, names[:1])
    model = DistillingModel.add_task(base, names[1:], DistillationSettings.preset("mib"))
    before = copy.deepcopy(model.student.state_dict())
    trainer = Trainer(recipe, tmp_path / "out", model, dataset, build_collate(CvisVideoProcessor()))
    trainer.train()
    trainer.finish()
    (checkpoint,) = (tmp_path / "out" / "checkpoints").iterdir()
    loaded = AutoModelForVideoInstanceSegmentation.from_pretrained(checkpoint)
    after = model.student.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in loaded.state_dict().items())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_bad_teachers_and_settings_are_refused():
    model = tiny_task_clip_detector()
    with pytest.raises(
        ValueError, match=r"those of the teacher \(disk, star, ring\) followed by new ones, got disk, star, ring"
    ):
        DistillingModel(model, tiny_task_clip_detector(), DistillationSettings())
    model.add_task(["moon"], 3)
    with pytest.raises(ValueError, match="the same queries, got 8 and 5. Add the task without prompts"):
        DistillingModel(model, tiny_task_clip_detector(), DistillationSettings())
    for changes, message in (
        ({"pod_weight": -1}, "`pod_weight` must be at least 0, got -1"),
        ({"alpha": 0}, "`alpha` must be above 0, got 0"),
        ({"pseudo_threshold": 2}, "`pseudo_threshold` must be a probability from 0 to 1, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            DistillationSettings.preset("mib", **changes)
    with pytest.raises(ValueError, match="`preset` must be one of 'finetune', 'mib', 'comformer', 'pod', got 'combo'"):
        DistillationSettings.preset("combo")
