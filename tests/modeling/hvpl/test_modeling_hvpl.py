# SPDX-License-Identifier: Apache-2.0
"""HVPL: learning task by task."""

import pytest
import torch

from tests.support.helpers import tiny_hvpl
from tests.support.model_tester import VideoModelTests
from tests.support.video_data import LABELS, loss_of, video_batch, video_labels
from transformers_cvis import HvplForVideoInstanceSegmentation, VitaConfig, VitaForVideoInstanceSegmentation


class TestHvpl(VideoModelTests):
    model_class = HvplForVideoInstanceSegmentation
    class_head = "class_predictor.heads.1.2.0"
    num_class_rows = 3


@pytest.mark.usefixtures("cpu_threads")
@pytest.mark.parametrize("prompts", [(3, 3, 3), (4, 2, 2)], ids=str)
@pytest.mark.parametrize("num_frames", [1, 3, 8])
def test_new_tasks_keep_older_predictions_bit_identical(num_frames, prompts):
    assert_new_tasks_change_nothing(tiny_hvpl(), num_frames, prompts)


@pytest.mark.usefixtures("cpu_threads")
def test_new_tasks_keep_older_predictions_with_eager_attention():
    model = tiny_hvpl()
    model.set_attn_implementation("eager")
    assert_new_tasks_change_nothing(model, num_frames=3, prompts=(4, 2, 2))


@torch.no_grad()
def assert_new_tasks_change_nothing(model, num_frames, prompts):
    before = model(video_batch(num_frames), output_embeddings=True)
    num_classes = 3
    for task, num_prompts in enumerate(prompts, start=1):
        model.add_task([f"new {task}"], num_prompts)
        for parameter in model.task_parameters(task).values():
            parameter.add_(torch.randn_like(parameter))
        after = model(video_batch(num_frames), output_embeddings=True)
        for name in ("frame_queries", "encoded_frame_queries", "frame_similarity_embeddings"):
            old = getattr(before, name)
            assert torch.equal(getattr(after, name)[..., : old.shape[-2], :], old), name
        for name in ("video_queries", "mask_embeddings", "masks_queries_logits", "video_similarity_embeddings"):
            old = getattr(before, name)
            assert torch.equal(getattr(after, name)[:, : old.shape[1]], old), name
        # logits of older classes stay, those of other tasks are -10; delta 0 keeps no-object
        old, new = before.class_queries_logits, after.class_queries_logits
        num_queries = old.shape[1]
        assert new.shape == (2, num_queries + num_prompts, num_classes + 2)
        assert torch.equal(new[:, :num_queries, :num_classes], old[..., :-1])
        assert torch.equal(new[:, :num_queries, -1], old[..., -1])
        assert (new[:, :num_queries, num_classes] == -10).all()
        assert (new[:, num_queries:, :num_classes] == -10).all()
        before, num_classes = after, num_classes + 1


def test_a_new_task_trains_alone():
    model = tiny_hvpl()
    assert all(parameter.requires_grad for parameter in model.parameters() if parameter.is_leaf)
    base = {name for name, _ in model.named_parameters()}
    model.add_task(["moon"], num_prompts=3)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(model.task_parameters(1)) == {name for name, _ in model.named_parameters()} - base
    assert trainable == set(model.task_parameters(1)) | set(model.no_object_parameters())
    labels = [{**label, "class_labels": torch.tensor([3, 3])} for label in video_labels()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()(video_batch(), labels=labels).loss.backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name in trainable), name
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert changed <= trainable


@pytest.mark.parametrize("num_objects", [2, 8])  # the base has 5 video queries
def test_more_objects_than_prompts_train(num_objects):
    """Objects beyond the prompts are left out of the losses of both levels, but count in their normalisers."""
    labels = [
        {name: part.repeat_interleave(num_objects // 2, dim=0) for name, part in label.items()}
        for label in video_labels()
    ]
    for label in labels:
        present = label["ids"] != -1
        label["ids"] = torch.where(present, torch.arange(num_objects)[:, None], -1)
        label["class_labels"] = torch.full((num_objects,), 3)
    model = tiny_hvpl()
    model.add_task(["moon"], num_prompts=1)
    losses = model.train()(video_batch(), labels=labels).loss_dict
    assert all(loss.isfinite() for loss in losses.values())
    assert min(losses[f"loss_{level}{kind}"] for level in ("", "hvpl_") for kind in ("ce", "mask", "dice")) > 0
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.task_parameters(1).values())


def test_more_objects_than_queries_of_the_base():
    """Check that the base refuses more objects than it has queries, like VITA."""
    labels = [{name: part.repeat_interleave(4, dim=0) for name, part in label.items()} for label in video_labels()]
    model = tiny_hvpl()
    model.add_task(["moon"], num_prompts=1)
    model.remove_task()
    with pytest.raises(ValueError, match="has 8 objects, but the model has only 5 video queries"):
        model.train()(video_batch(), labels=labels)


@torch.no_grad()
def test_a_model_of_several_tasks_is_saved_whole(tmp_path):
    model = tiny_hvpl()
    model.add_task(["moon"], num_prompts=3)
    model.add_task(["sun", "sky"], num_prompts=4)
    model.save_pretrained(tmp_path)
    loaded = HvplForVideoInstanceSegmentation.from_pretrained(tmp_path)
    assert loaded.config.id2label == {**LABELS, 3: "moon", 4: "sun", 5: "sky"}
    assert loaded.config.task_class_counts == [3, 1, 2]
    assert loaded.config.task_prompt_counts == [3, 4]
    assert torch.equal(loaded(video_batch()).class_queries_logits, model(video_batch()).class_queries_logits)
    trainable = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_base_trains_as_a_whole():
    model = tiny_hvpl()
    loss_of(model).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@torch.no_grad()
def test_streamed_video_equals_whole_video():
    model = tiny_hvpl()
    model.add_task(["moon"], num_prompts=3)
    video = video_batch(5, batch_size=1)
    whole = model(video)
    parts = list(model.stream(video.split(2, dim=1)))
    masks = torch.cat([part.masks_queries_logits for part in parts], dim=2)
    torch.testing.assert_close(masks, whole.masks_queries_logits, rtol=1e-4, atol=1e-4)
    for part in parts:
        torch.testing.assert_close(part.class_queries_logits, whole.class_queries_logits, rtol=1e-4, atol=1e-4)


def test_focal_loss_is_that_of_both_levels():
    """This holds for later tasks as well; masks are scored alike."""
    labels = [{**label, "class_labels": torch.tensor([3, 3])} for label in video_labels()]
    found = []
    for kind in ("ce", "focal"):
        model = tiny_hvpl(classification_loss=kind, drop_path_rate=0.0)
        model.add_task(["moon"], num_prompts=3)
        torch.manual_seed(0)
        found.append(model.train()(video_batch(), labels=labels).loss_dict)
    for name, value in found[0].items():
        assert torch.isclose(value, found[1][name]) == ("_ce" not in name), name
    assert {"loss_ce", "loss_ce_0", "loss_hvpl_ce", "loss_hvpl_ce_0"} <= set(found[0])


@torch.no_grad()
def test_the_attention_encoder_is_that_of_vita():
    """The default encoder, trees, differs; all read the same frame queries."""
    tree, attention = tiny_hvpl(), tiny_hvpl(encoder="attention")
    settings = {name: value for name, value in attention.config.to_dict().items() if name in VitaConfig().to_dict()}
    vita = VitaForVideoInstanceSegmentation(VitaConfig(**{**settings, "model_type": "vita"})).eval()
    for model in (tree, attention):
        model.load_state_dict({**model.state_dict(), **shared(vita, model)})
    outputs = [model(video_batch(), output_embeddings=True) for model in (tree, attention, vita)]
    for output in outputs:
        torch.testing.assert_close(output.frame_queries, outputs[2].frame_queries)
    torch.testing.assert_close(outputs[1].encoded_frame_queries, outputs[2].encoded_frame_queries)
    torch.testing.assert_close(outputs[1].masks_queries_logits, outputs[2].masks_queries_logits)
    assert not torch.allclose(outputs[0].encoded_frame_queries, outputs[1].encoded_frame_queries, atol=1e-2)
    assert not torch.allclose(outputs[0].masks_queries_logits, outputs[1].masks_queries_logits, atol=1e-2)


def shared(source, model) -> dict[str, torch.Tensor]:
    """Return the weights of `source` that `model` has as well."""
    return {name: tensor for name, tensor in source.state_dict().items() if name in model.state_dict()}


@pytest.mark.parametrize("frozen", [True, False])
def test_stochastic_depth_of_a_frozen_encoder(frozen):
    model = tiny_hvpl(freeze_drop_path=frozen)
    assert model.train().video_head.encoder.training
    model.add_task(["moon"], num_prompts=3)
    assert model.train().video_head.encoder.training is not frozen


def test_impossible_tasks_are_refused():
    model = tiny_hvpl()
    with pytest.raises(ValueError, match=r"Classes \['disk'\] are known already"):
        model.add_task(["disk", "moon"], num_prompts=3)
    with pytest.raises(ValueError, match=r"\['moon'\] are known already or given twice"):
        model.add_task(["moon", "moon"], num_prompts=3)
    with pytest.raises(ValueError, match="at least 1 class and 1 prompt, got 1 and 0"):
        model.add_task(["moon"], num_prompts=0)
    with pytest.raises(ValueError, match="`task` is 1, but the model has 0 active tasks"):
        model.task_parameters(1)
