# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from tests.support.fixed_points import FixedPoints
from transformers_cvis.modeling.losses import (
    ClipwiseMaskClassificationLoss,
    VideoMaskClassificationLoss,
    VideoTargets,
)
from transformers_cvis.modeling.losses.similarity import similarity_losses
from transformers_cvis.modeling.outputs import LayerPrediction

NUM_LABELS, NUM_LAYERS, GROUPS, QUERIES, FRAME_QUERIES, CHANNELS = 4, 3, 2, 6, 5, 8


def make_labels(*videos):
    labels = []
    for ids in videos:
        ids = torch.tensor(ids).reshape(len(ids), -1)
        masks = torch.zeros(*ids.shape, 16, 24, dtype=torch.bool)
        for number in range(len(ids)):
            masks[number, :, 3 * number : 3 * number + 5, 4:20] = True
        masks &= (ids != -1)[:, :, None, None]
        labels.append({"class_labels": torch.arange(len(ids)) % NUM_LABELS, "ids": ids, "masks": masks})
    return labels


def make_inputs(labels, num_clips=1, dtype=torch.float64, seed=0):
    """Return arguments of the clipwise criterion: one list of predictions and one similarity tensor per clip."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    num_videos, num_frames = len(labels), labels[0]["ids"].shape[1]
    predictions = [
        [
            LayerPrediction(
                draw(GROUPS, num_videos, QUERIES, NUM_LABELS + 1), draw(GROUPS, num_videos, QUERIES, CHANNELS)
            )
            for _ in range(NUM_LAYERS)
        ]
        for _ in range(num_clips)
    ]
    targets = VideoTargets.from_labels(labels, NUM_LABELS)
    frame_matches = torch.where(targets.ids == -1, -1, torch.arange(len(targets.ids))[:, None] % FRAME_QUERIES)
    return {
        "predictions": predictions,
        "mask_features": draw(num_videos, num_frames, CHANNELS, 4, 6),
        "targets": targets,
        "frame_matches": frame_matches.expand(GROUPS, -1, -1),
        "frame_similarity": draw(GROUPS, num_videos, num_frames, FRAME_QUERIES, CHANNELS),
        "video_similarity": [draw(GROUPS, num_videos, QUERIES, CHANNELS) for _ in range(num_clips)],
    }


def leaves(inputs):
    parts = [part for clip in inputs["predictions"] for prediction in clip for part in prediction]
    return [*parts, inputs["mask_features"], inputs["frame_similarity"], *inputs["video_similarity"]]


def run_clipwise(inputs, seed=0, **kwargs):
    torch.manual_seed(seed)
    return ClipwiseMaskClassificationLoss(NUM_LABELS, "genvis", num_points=32, **kwargs)(**inputs)


def test_one_clip_is_the_whole_video():
    inputs = make_inputs(make_labels([[0, 0, -1], [1, 1, 1]], [[0, -1, 0]]))
    clipwise = run_clipwise(inputs)
    torch.manual_seed(0)
    whole = VideoMaskClassificationLoss(NUM_LABELS, "vita", num_points=32)(
        **{**inputs, "predictions": inputs["predictions"][0], "video_similarity": inputs["video_similarity"][0]}
    )
    assert set(clipwise) == {f"{name}_clip0".replace("vita", "genvis") for name in whole}
    for name, value in whole.items():
        torch.testing.assert_close(clipwise[f"{name}_clip0".replace("vita", "genvis")], value)


def test_losses_of_every_clip_are_named_finite_and_reach_every_input():
    inputs = make_inputs(
        make_labels([[0, 0, -1, -1, 0, 0], [-1, -1, 1, 1, 1, 1]], [[-1, 0, -1, -1, -1, -1]]), num_clips=3
    )
    losses = run_clipwise(inputs)
    kinds = [f"{kind}{layer}" for kind in ("ce", "mask", "dice") for layer in ("", "_0", "_1")] + ["sim"]
    assert set(losses) == {f"loss_genvis_{kind}_clip{clip}" for kind in kinds for clip in range(3)}
    sum(losses.values()).backward()
    for leaf in leaves(inputs):
        assert leaf.grad.isfinite().all()
        assert leaf.grad.any()


def test_an_absent_object_is_no_object_in_its_clip():
    """One object is absent in the second clip: only the class loss remains there, with all queries no-object."""
    inputs = make_inputs(make_labels([[0, 0, -1, -1, 0, 0]]), num_clips=3)
    losses = run_clipwise(inputs)
    assert losses["loss_genvis_mask_clip1"] == 0
    assert losses["loss_genvis_sim_clip1"] == 0
    expected = -2 * inputs["predictions"][1][-1].class_logits.log_softmax(-1)[..., -1].mean()
    torch.testing.assert_close(losses["loss_genvis_ce_clip1"], expected)
    assert losses["loss_genvis_mask_clip2"] > 0


def test_rules_differ_when_a_newcomer_fits_the_query_of_a_vanished_object():
    inputs = make_inputs(make_labels([[0, -1, 0], [-1, 1, 1]]), num_clips=3)
    with torch.no_grad():
        for clip in inputs["predictions"]:
            for layer in clip:  # query 0 is every object's favourite
                layer.class_logits[..., :NUM_LABELS] -= 20
                layer.class_logits[..., 0, :NUM_LABELS] += 40
                layer.mask_embeddings.zero_()
    paper, released = run_clipwise(inputs, uvla="paper"), run_clipwise(inputs, uvla="released")
    torch.testing.assert_close(paper["loss_genvis_ce_clip0"], released["loss_genvis_ce_clip0"])
    assert paper["loss_genvis_ce_clip1"] > released["loss_genvis_ce_clip1"] + 1
    assert not torch.isclose(paper["loss_genvis_ce_clip2"], released["loss_genvis_ce_clip2"])


def test_no_objects_at_all():
    inputs = make_inputs(make_labels([[-1, -1]], [[-1, -1]]), num_clips=2)
    losses = run_clipwise(inputs)
    assert losses["loss_genvis_mask_clip0"] == 0
    assert losses["loss_genvis_sim_clip1"] == 0
    sum(losses.values()).backward()
    for leaf in leaves(inputs):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


def test_frames_must_be_a_whole_number_of_clips():
    with pytest.raises(ValueError, match="3 frames cannot be split into 2 clips"):
        run_clipwise(make_inputs(make_labels([[0, 0, 0]]), num_clips=2))


def test_more_objects_than_queries():
    with pytest.raises(ValueError, match="hold 7 objects, but the model has only 6 queries"):
        run_clipwise(make_inputs(make_labels([[number, number] for number in range(7)]), num_clips=2))


@pytest.mark.parametrize("num_clips", [1, 2])
def test_surplus_objects_are_left_out_of_all_losses_but_counted(num_clips):
    """Seven objects, the last of which fits no query, against the six others alone."""
    labels = make_labels([[number, number] for number in range(7)], [[0, 0]])
    labels[0]["class_labels"] = torch.tensor([0, 1, 2, 0, 1, 2, 3])
    inputs = make_inputs(labels, num_clips)
    with torch.no_grad():
        for layer in (layer for clip in inputs["predictions"] for layer in clip):
            layer.class_logits[:, 0, :, 3] = -20  # the class of the seventh
            layer.mask_embeddings[:, 0] = 0
    inputs["frame_matches"] = inputs["frame_matches"].clone()
    inputs["frame_matches"][:, 6] = -1  # and it was not matched in its frames
    criterion = ClipwiseMaskClassificationLoss(NUM_LABELS, "hvpl", num_points=40)
    criterion.point_sampler, criterion.leave_surplus = FixedPoints(), True
    losses = criterion(**inputs)
    kept = [{name: part[:6] for name, part in labels[0].items()}, labels[1]]
    matches = inputs["frame_matches"][:, [0, 1, 2, 3, 4, 5, 7]]
    expected = criterion(**{**inputs, "targets": VideoTargets.from_labels(kept, NUM_LABELS), "frame_matches": matches})
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        counts = (8, 7) if "_mask" in name or "_dice" in name else (1, 1)
        torch.testing.assert_close(counts[0] * value, counts[1] * expected[name], msg=name)


def test_unknown_rule():
    with pytest.raises(ValueError, match="`uvla` must be one of 'paper', 'released', got 'thesis'"):
        ClipwiseMaskClassificationLoss(NUM_LABELS, "genvis", uvla="thesis")


def test_half_precision():
    inputs = make_inputs(make_labels([[0, 0], [1, -1]]), num_clips=2, dtype=torch.bfloat16)
    losses = run_clipwise(inputs)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    sum(losses.values()).backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves(inputs))


def test_similarity_is_the_mean_over_ordered_pairs():
    torch.manual_seed(0)
    embeddings = torch.randn(2, 4, 3, dtype=torch.float64)
    ids = torch.tensor([[0, 1, -1, 0], [-1, -1, 2, 2]])
    losses, pairs = similarity_losses(embeddings, ids)
    assert pairs.tolist() == [9, 4]
    for number, present in enumerate(([0, 1, 3], [2, 3])):
        chosen = embeddings[number, present]
        alike = (ids[number, present][:, None] == ids[number, present][None]).double()
        expected = torch.nn.functional.binary_cross_entropy_with_logits(chosen @ chosen.T, alike, reduction="sum")
        torch.testing.assert_close(losses[number], expected)
