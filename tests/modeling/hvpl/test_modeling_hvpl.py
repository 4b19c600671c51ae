"""HVPL: learning task by task."""

import pytest
import torch
from helpers import tiny_hvpl
from modeling.model_tester import LABELS, VideoModelTests, loss_of, video_batch, video_labels

from transformers_cvis import HvplForVideoInstanceSegmentation


class TestHvpl(VideoModelTests):
    model_class = HvplForVideoInstanceSegmentation
    class_head = "class_predictor.heads.1.2.0"
    num_class_rows = 3


@pytest.mark.usefixtures("one_cpu_thread")
@pytest.mark.parametrize("num_frames", [1, 3])
@torch.no_grad()
def test_a_new_task_leaves_what_older_ones_predict_bit_identical(num_frames):
    model = tiny_hvpl()
    before = model(video_batch(num_frames), output_embeddings=True)
    model.add_task(["moon"], num_prompts=3)
    for parameter in model.task_parameters(1).values():
        parameter.add_(torch.randn_like(parameter))
    after = model(video_batch(num_frames), output_embeddings=True)
    assert torch.equal(after.frame_queries[..., :6, :], before.frame_queries)
    assert torch.equal(after.encoded_frame_queries[..., :6, :], before.encoded_frame_queries)
    assert torch.equal(after.mask_embeddings[:, :5], before.mask_embeddings)
    assert torch.equal(after.masks_queries_logits[:, :5], before.masks_queries_logits)
    # the base's own classes too; delta 0 leaves no-object as it is
    assert torch.equal(after.class_queries_logits[:, :5, :3], before.class_queries_logits[..., :3])
    assert torch.equal(after.class_queries_logits[:, :5, 4], before.class_queries_logits[..., 3])
    assert (after.class_queries_logits[:, :5, 3] == -10).all() and (after.class_queries_logits[:, 5:, :3] == -10).all()


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
    assert changed and changed <= trainable


@torch.no_grad()
def test_a_model_of_several_tasks_is_saved_whole(tmp_path):
    model = tiny_hvpl()
    model.add_task(["moon"], num_prompts=3)
    model.add_task(["sun", "sky"], num_prompts=4)
    model.save_pretrained(tmp_path)
    loaded = HvplForVideoInstanceSegmentation.from_pretrained(tmp_path)
    assert loaded.config.id2label == {**LABELS, 3: "moon", 4: "sun", 5: "sky"}
    assert loaded.config.task_class_counts == [3, 1, 2] and loaded.config.task_prompt_counts == [3, 4]
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


@pytest.mark.parametrize("frozen", [True, False])
def test_stochastic_depth_of_a_frozen_encoder(frozen):
    model = tiny_hvpl(freeze_drop_path=frozen)
    assert model.train().video_head.encoder.training
    model.add_task(["moon"], num_prompts=3)
    assert model.train().video_head.encoder.training is not frozen


def test_tasks_that_cannot_be():
    model = tiny_hvpl()
    with pytest.raises(ValueError, match=r"Classes \['disk'\] are known already"):
        model.add_task(["disk", "moon"], num_prompts=3)
    with pytest.raises(ValueError, match=r"\['moon'\] are known already or named twice"):
        model.add_task(["moon", "moon"], num_prompts=3)
    with pytest.raises(ValueError, match="at least 1 class and 1 prompt, got 1 and 0"):
        model.add_task(["moon"], num_prompts=0)
    with pytest.raises(ValueError, match="no task 1 after the base: the model has learnt 0"):
        model.task_parameters(1)
