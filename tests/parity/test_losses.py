# SPDX-License-Identifier: Apache-2.0
"""Losses, costs, matches, assignments and gradients against the research code.

The reference cases give dense mask logits. The criteria take mask features and embeddings, so the logits of all layers
become the channels of the features, and each embedding picks one channel.
"""

import numpy as np
import torch

from tests.support.goldens import Case, FixedPoints, assert_matches, load_case
from transformers_cvis.modeling.losses import (
    ClipwiseMaskClassificationLoss,
    MaskClassificationLoss,
    VideoMaskClassificationLoss,
    VideoTargets,
    select_uncertain_points,
    unified_video_label_assignment,
)
from transformers_cvis.modeling.outputs import LayerPrediction


def settings(case: Case) -> dict:
    weights = case.config["weights"]
    return {
        "num_labels": case.config["classes"],
        "class_weight": weights["class"],
        "mask_weight": weights["mask"],
        "dice_weight": weights["dice"],
        "no_object_weight": weights["no_object"],
    }


def fixed_points(case: Case) -> FixedPoints:
    return FixedPoints(case.inputs["matcher_points"], case.inputs["loss_points"])


def pick_channels(layer: int, num_layers: int, num_queries: int) -> torch.Tensor:
    """Return embeddings `(Q, layers * Q)` whose products with all layers' logits are the logits of `layer`."""
    return torch.eye(num_layers * num_queries, dtype=torch.float64).unflatten(0, (num_layers, num_queries))[layer]


def frame_predictions(logits: list[torch.Tensor], masks: list[torch.Tensor]):
    """Build predictions and mask features of images from logits (N, Q, K + 1) and (N, Q, h, w) of each layer."""
    num_images, num_queries = masks[0].shape[:2]
    predictions = [
        LayerPrediction(logit, pick_channels(layer, len(masks), num_queries).expand(num_images, -1, -1))
        for layer, logit in enumerate(logits)
    ]
    return predictions, torch.cat(masks, dim=1)


def clip_predictions(logits: list[torch.Tensor], masks: list[torch.Tensor]):
    """Build predictions and mask features (B, T, C, h, w) of videos from (L, B, Q, K + 1) and (L, B, Q, T, h, w)."""
    num_groups, num_videos, num_queries = masks[0].shape[:3]
    features = torch.stack(masks).permute(2, 4, 0, 1, 3, 5, 6).flatten(2, 4)
    embeddings = torch.eye(features.shape[2], dtype=torch.float64)
    embeddings = embeddings.unflatten(0, (len(masks), num_groups, 1, num_queries)).expand(-1, -1, num_videos, -1, -1)
    return [LayerPrediction(*layer) for layer in zip(logits, embeddings, strict=True)], features


def with_gradients(inputs: dict, prefix: str, count: int) -> list[torch.Tensor]:
    return [inputs[f"{prefix}_layer{layer}"].clone().requires_grad_() for layer in range(count)]


def total_and_unweighted(losses: dict[str, torch.Tensor], case: Case):
    """Return the sum of weighted losses, and each loss without its weight, as the reference lists it."""
    weights = case.config["weights"]
    kinds = {"ce": "class", "mask": "mask", "dice": "dice", "sim": "similarity"}
    unweighted = {}
    for name, value in losses.items():
        kind = next(kind for kind in kinds if f"_{kind}" in name)
        unweighted[name] = (value / weights[kinds[kind]]).reshape(1)
    return sum(losses.values()), unweighted


def record_costs(criterion, monkeypatch) -> list:
    """Record the cost arrays of every matching of `criterion`, in order."""
    recorded, compute = [], criterion._costs

    def record(*args):
        recorded.append(compute(*args))
        return recorded[-1]

    monkeypatch.setattr(criterion, "_costs", record)
    return recorded


def video_labels(case: Case) -> list[dict]:
    """Return raw labels with masks padded right and bottom to a multiple of 32, like the models' input."""
    labels = []
    for video in range(case.config["videos"]):
        masks = case.inputs[f"video{video}_masks"]
        height, width = masks.shape[-2:]
        labels.append(
            {
                "class_labels": case.inputs[f"video{video}_labels"],
                "ids": case.inputs[f"video{video}_ids"],
                "masks": torch.nn.functional.pad(masks, (0, -width % 32, 0, -height % 32)).bool(),
            }
        )
    return labels


def check_prepared(case: Case, targets: VideoTargets) -> None:
    for video in range(case.config["videos"]):
        mine = targets.video_index == video
        assert_matches(targets.class_labels[mine], case.outputs[f"prepared_video{video}_labels"])
        assert_matches(targets.ids[mine], case.outputs[f"prepared_video{video}_ids"])
        areas = targets.masks[mine].sum(dim=(2, 3)).double()
        assert_matches(areas, case.outputs[f"prepared_video{video}_mask_areas"])


def check_frame_matches(case: Case, matched: torch.Tensor, frame_labels: list[dict]) -> None:
    counts = [len(label["class_labels"]) for label in frame_labels]
    for layer, row in enumerate(matched):
        expected = case.outputs[f"frame_match_layer{layer}"]
        padded = torch.full_like(expected, -1)
        for frame, queries in enumerate(row.split(counts)):
            padded[frame, : len(queries)] = queries
        assert_matches(padded, expected, f"frame_match_layer{layer}")


def frame_level(case: Case, targets: VideoTargets):
    num_layers = case.config["frame_decoder_layers_L"]
    criterion = MaskClassificationLoss(**settings(case))
    criterion.point_sampler = fixed_points(case)
    predictions, features = frame_predictions(
        [case.inputs[f"frame_logits_layer{layer}"] for layer in range(num_layers)],
        [case.inputs[f"frame_masks_layer{layer}"] for layer in range(num_layers)],
    )
    frame_labels = targets.frame_labels()
    losses, matched = criterion(predictions, features, frame_labels)
    check_frame_matches(case, matched, frame_labels)
    assert torch.equal(criterion.match(predictions, features, frame_labels), matched)
    return losses, targets.frame_matches(matched)


def test_frame_losses(monkeypatch):
    case = load_case("m2f_losses")
    num_layers = case.config["aux_layers"] + 1
    logits = with_gradients(case.inputs, "pred_logits", num_layers)
    masks = with_gradients(case.inputs, "pred_masks", num_layers)
    criterion = MaskClassificationLoss(**settings(case))
    criterion.point_sampler = fixed_points(case)
    costs = record_costs(criterion, monkeypatch)
    labels = [
        {"class_labels": case.inputs[f"labels_{image}"], "masks": case.inputs[f"target_masks_{image}"]}
        for image in range(case.config["images"])
    ]
    losses, matched = criterion(*frame_predictions(logits, masks), labels)

    for image, queries in enumerate(matched.split([len(label["class_labels"]) for label in labels], dim=1)):
        for layer in range(num_layers):
            name = f"layer{layer}_image{image}"
            assert_matches(costs[0][image][layer, 0], case.outputs[f"cost_{name}"], f"cost_{name}", case.tolerance)
            order = queries[layer].argsort()
            assert_matches(torch.stack([queries[layer][order], order]), case.outputs[f"match_{name}"], f"match_{name}")
    total, unweighted = total_and_unweighted(losses, case)
    assert {f"loss/{name}" for name in losses} == set(case.outputs).intersection(
        name for name in case.outputs if name.startswith("loss/")
    ) - {"loss/total_weighted"}
    for name, value in unweighted.items():
        assert_matches(value, case.outputs[f"loss/{name}"], name, case.tolerance)
    assert_matches(total.reshape(1), case.outputs["loss/total_weighted"], "total", case.tolerance)
    total.backward()
    for layer in range(num_layers):
        assert_matches(logits[layer].grad, case.outputs[f"grad_logits_layer{layer}"], "logits", case.tolerance)
        assert_matches(masks[layer].grad, case.outputs[f"grad_masks_layer{layer}"], "masks", case.tolerance)


def test_point_sampler():
    case = load_case("point_sampler")
    logits = case.inputs["mask_logits"]
    num_uncertain = int(case.config["importance_ratio"] * case.config["points"])
    points = select_uncertain_points(
        logits, case.inputs["first_draw"], case.inputs["second_draw"].unsqueeze(1), num_uncertain
    ).squeeze(1)
    expected = case.outputs["points"]
    assert_matches(points[:, num_uncertain:], expected[:, num_uncertain:], "second draw", 0)
    for mine, reference in zip(points[:, :num_uncertain], expected[:, :num_uncertain], strict=True):
        assert sorted(map(tuple, mine.tolist())) == sorted(map(tuple, reference.tolist()))


def test_video_losses(monkeypatch):
    case = load_case("vita_losses")
    num_layers = case.config["aux_layers"] + 1
    targets = VideoTargets.from_labels(video_labels(case), case.config["classes"])
    check_prepared(case, targets)
    frame_losses, frame_matches = frame_level(case, targets)
    for name, value in total_and_unweighted(frame_losses, case)[1].items():
        assert_matches(value, case.outputs[f"loss/frame/{name}"], name, case.tolerance)

    logits = with_gradients(case.inputs, "pred_logits", num_layers)
    masks = with_gradients(case.inputs, "pred_masks", num_layers)
    frame_similarity = case.inputs["frame_sim_embed"].clone().requires_grad_()
    video_similarity = case.inputs["clip_sim_embed"].clone().requires_grad_()
    criterion = VideoMaskClassificationLoss(
        name="vita", similarity_weight=case.config["weights"]["similarity"], **settings(case)
    )
    criterion.point_sampler = fixed_points(case)
    costs = record_costs(criterion, monkeypatch)
    losses = criterion(*clip_predictions(logits, masks), targets, frame_matches, frame_similarity, video_similarity)

    for layer in range(num_layers):
        cost, match = case.outputs[f"cost_layer{layer}"], case.outputs[f"match_layer{layer}"]
        mine = torch.full_like(cost, float("nan"))
        for video, array in enumerate(costs[0]):
            for group in range(array.shape[1]):
                row = group * len(costs[0]) + video
                mine[row, :, : array.shape[3]] = torch.from_numpy(array[layer, group])
                expected = match[row, : array.shape[3]]
                assigned = unified_video_label_assignment(
                    [array[layer, group][None]], np.ones((array.shape[3], 1), dtype=bool)
                )
                assert_matches(assigned[0, 0], expected, f"match_layer{layer}")
        assert torch.equal(mine.isnan(), cost.isnan())
        assert_matches(mine.nan_to_num(), cost.nan_to_num(), f"cost_layer{layer}", case.tolerance)
    total, unweighted = total_and_unweighted(losses, case)
    expected = {name for name in case.outputs if name.startswith("loss/") and not name.startswith("loss/frame/")}
    assert {f"loss/{name}" for name in losses} == expected - {"loss/total_weighted"}
    for name, value in unweighted.items():
        assert_matches(value, case.outputs[f"loss/{name}"], name, case.tolerance)
    assert_matches(total.reshape(1), case.outputs["loss/total_weighted"], "total", case.tolerance)
    total.backward()
    for layer in range(num_layers):
        assert_matches(logits[layer].grad, case.outputs[f"grad_logits_layer{layer}"], "logits", case.tolerance)
        assert_matches(masks[layer].grad, case.outputs[f"grad_masks_layer{layer}"], "masks", case.tolerance)
    assert_matches(frame_similarity.grad, case.outputs["grad_frame_sim"], "grad_frame_sim", case.tolerance)
    assert_matches(video_similarity.grad, case.outputs["grad_clip_sim"], "grad_clip_sim", case.tolerance)


def test_clipwise_losses(monkeypatch):
    case = load_case("genvis_losses")
    num_layers, num_clips = case.config["aux_layers"] + 1, case.config["clips"]
    targets = VideoTargets.from_labels(video_labels(case), case.config["classes"])
    check_prepared(case, targets)
    _, frame_matches = frame_level(case, targets)

    logits = [with_gradients(case.inputs, f"clip{clip}_pred_logits", num_layers) for clip in range(num_clips)]
    masks = [with_gradients(case.inputs, f"clip{clip}_pred_masks", num_layers) for clip in range(num_clips)]
    frame_similarity = torch.cat([case.inputs[f"clip{clip}_frame_sim_embed"] for clip in range(num_clips)], dim=2)
    video_similarity = [case.inputs[f"clip{clip}_clip_sim_embed"].clone().requires_grad_() for clip in range(num_clips)]
    predictions, features = zip(*map(clip_predictions, logits, masks), strict=True)
    criterion = ClipwiseMaskClassificationLoss(
        name="genvis",
        uvla="released",
        similarity_weight=case.config["weights"]["similarity"],
        **settings(case),
    )
    criterion.point_sampler = fixed_points(case)
    costs = record_costs(criterion, monkeypatch)
    assignments, assign = [], criterion._assign_labels
    monkeypatch.setattr(criterion, "_assign_labels", lambda *args: assignments.append(assign(*args)) or assignments[-1])
    losses = criterion(
        predictions, torch.cat(features, dim=1), targets, frame_matches, frame_similarity, video_similarity
    )

    check_assignments(case, targets, costs[0], assignments[0])
    total, unweighted = total_and_unweighted(losses, case)
    assert len(unweighted) == sum(name.startswith("loss/clip") for name in case.outputs)
    for name, value in unweighted.items():
        name, clip = name.rsplit("_clip", 1)
        assert_matches(value, case.outputs[f"loss/clip{clip}/{name}"], f"clip {clip} {name}", case.tolerance)
    assert_matches(total.reshape(1), case.outputs["loss/total_weighted"], "total", case.tolerance)
    total.backward()
    gradients = {}
    for clip in range(num_clips):
        gradients[f"grad_clip{clip}_clip_sim"] = video_similarity[clip].grad
        for layer in range(num_layers):
            gradients[f"grad_clip{clip}_logits_layer{layer}"] = logits[clip][layer].grad
            gradients[f"grad_clip{clip}_masks_layer{layer}"] = masks[clip][layer].grad
    recorded = [name for name in case.outputs if name.startswith("grad_")]
    assert recorded
    for name in recorded:
        assert_matches(gradients[name], case.outputs[name], name, case.tolerance)


def check_assignments(case: Case, targets: VideoTargets, costs: list[np.ndarray], assignment: torch.Tensor) -> None:
    """Compare costs, newcomers' matches, merged assignment, blocked and occupied queries of every clip and layer.

    The reference hands the solver matrices with columns of all but newcomers and rows of blocked queries at
    `blocked_cost`; the solver here gets only the rest.
    """
    num_videos, num_clips, blocked_cost = targets.num_videos, case.config["clips"], case.config["blocked_cost"]
    visible = (targets.clip_ids(num_clips) != -1).any(dim=2)
    num_layers, num_groups = assignment.shape[:2]
    for clip in range(num_clips):
        seen = visible[:, :clip].any(dim=1)
        newcomers = visible[:, clip] & ~seen
        for layer in range(num_layers):
            expected = {
                kind: case.outputs[f"clip{clip}_{kind}_layer{layer}"]
                for kind in ("excluded", "cost", "match", "merged", "occupied")
            }
            mine = {kind: torch.zeros_like(value) for kind, value in expected.items()}
            mine["cost"].fill_(float("nan"))
            mine["match"].fill_(-1)
            mine["merged"].fill_(-1)
            for video in range(num_videos):
                objects = (targets.video_index == video).nonzero().squeeze(1)
                new, now, earlier = newcomers[objects], visible[objects, clip], seen[objects]
                for flag, name in ((new, "new"), (now, "valid")):
                    assert_matches(flag, case.outputs[f"clip{clip}_{name}"][video, : len(objects)], name)
                for group in range(num_groups):
                    row = group * num_videos + video
                    held = assignment[layer, group, objects]  # (objects, clips)
                    excluded = held[now & earlier, clip]
                    mine["excluded"][row, excluded] = True
                    cost = mine["cost"][row, :, : len(objects)].fill_(blocked_cost)
                    cost[:, new] = torch.from_numpy(costs[video * num_clips + clip][layer, group])
                    cost[excluded] = blocked_cost
                    mine["match"][row, : len(objects)] = held[:, clip].where(new, -1)
                    mine["merged"][row, : len(objects)] = held[:, clip]
                    mine["occupied"][row, held[now, clip]] = True
            assert torch.equal(mine["cost"].isnan(), expected["cost"].isnan())
            unblocked = (expected["cost"] != blocked_cost) & ~expected["cost"].isnan()
            assert torch.equal(mine["cost"] == blocked_cost, expected["cost"] == blocked_cost)
            for kind in ("excluded", "match", "merged", "occupied"):
                assert_matches(mine[kind], expected[kind], f"clip{clip}_{kind}_layer{layer}")
            assert_matches(mine["cost"][unblocked], expected["cost"][unblocked], "cost", case.tolerance)
