# SPDX-License-Identifier: Apache-2.0
"""Matching of queries to objects: the cost and its optimal assignment."""

from typing import Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from ..outputs import LayerPrediction
from .points import sample_points
from .targets import Targets, repeat_index

# Elements of the largest temporary of a matching cost and of masks turned to floats; larger ones are made in groups.
_GROUP_ELEMENTS = 2**25


class MatchingPoints(Protocol):
    """The part of a `PointSampler` that matching uses."""

    def matching_points(self, num_problems: int, like: torch.Tensor) -> torch.Tensor:
        """Return points `(num_problems, points, 2)` of the dtype and device of `like`."""
        ...


@torch.no_grad()
def matching_costs(
    prediction: LayerPrediction,
    mask_features: torch.Tensor,
    targets: Targets,
    point_sampler: MatchingPoints,
    class_weight: float,
    mask_weight: float,
    dice_weight: float,
) -> list[np.ndarray]:
    """Compute the cost of each pair of query and object: minus the class probability, plus BCE and Dice of the masks.

    Masks are compared at random points, the same for all masks of a problem and all its frames; the points of all
    frames count as one set. Only the mask features are sampled: sampling and the product with the embeddings commute.

    Args:
        prediction: Class logits `(D, L, P, Q, K + 1)` and mask embeddings `(D, L, P, Q, C)` of P problems.
        mask_features: `(P, T, C, h, w)`.
        targets: Objects of the P problems.
        point_sampler: Source of the random points.
        class_weight: Weight of the probability of the class.
        mask_weight: Weight of the mean BCE.
        dice_weight: Weight of the Dice.

    Returns:
        For each problem an array `(D, L, Q, objects)` on the host, after one transfer for all.

    Raises:
        ValueError: A cost is not finite.
    """
    num_sets, num_layers, _, num_queries = prediction.class_logits.shape[:4]
    costs = [np.zeros((num_sets, num_layers, num_queries, 0))] * len(targets.counts)
    used = [problem for problem, count in enumerate(targets.counts) if count]
    if not used:
        return costs

    points = point_sampler.matching_points(len(used), like=mask_features)  # (used, points, 2)
    row = repeat_index([targets.counts[problem] for problem in used]).to(points.device)
    inside = sample_masks(targets.masks, points[row].unsqueeze(1).expand(-1, targets.masks.shape[1], -1, -1))
    inside = inside.flatten(1)  # (M, T * points)

    size = max(1, _GROUP_ELEMENTS // (num_sets * num_layers * num_queries * inside.shape[1]))
    first = np.concatenate([[0], np.cumsum(targets.counts)])
    blocks = []
    for start in range(0, len(used), size):
        group = used[start : start + size]
        objects = slice(first[group[0]], first[group[-1] + 1])
        blocks.append(
            _group_costs(
                prediction.class_logits[:, :, group],
                prediction.mask_embeddings[:, :, group],
                mask_features[group],
                points[start : start + size],
                targets.class_labels[objects],
                inside[objects],
                [targets.counts[problem] for problem in group],
                (class_weight, mask_weight, dice_weight),
            )
        )
    flat = torch.cat(blocks).cpu().numpy()  # (M, D, L, Q)
    if not np.isfinite(flat).all():
        raise ValueError(_describe_non_finite(prediction, mask_features))
    for problem in used:
        costs[problem] = np.moveaxis(flat[first[problem] : first[problem + 1]], 0, -1)
    return costs


def _group_costs(
    class_logits: torch.Tensor,
    mask_embeddings: torch.Tensor,
    mask_features: torch.Tensor,
    points: torch.Tensor,
    class_labels: torch.Tensor,
    inside: torch.Tensor,
    counts: list[int],
    weights: tuple[float, float, float],
) -> torch.Tensor:
    """Compute the costs `(objects, D, L, Q)` of a group of G problems, each with at least one object."""
    num_sets, num_layers, num_problems, num_queries = class_logits.shape[:4]
    num_frames = mask_features.shape[1]
    sampled = sample_points(
        mask_features.flatten(0, 1), points.repeat_interleave(num_frames, dim=0)
    )  # (G * T, C, points)
    sampled = sampled.unflatten(0, (-1, num_frames)).transpose(1, 2).flatten(2)  # (G, C, T * points)
    embeddings = mask_embeddings.permute(2, 0, 1, 3, 4).flatten(1, 3)  # (G, D * L * Q, C)
    logits = embeddings @ sampled  # (G, D * L * Q, T * points)

    problem = repeat_index(counts).to(inside.device)
    slot = torch.cat([torch.arange(count) for count in counts]).to(inside.device)
    padded = inside.new_zeros(num_problems, max(counts), inside.shape[1])
    padded[problem, slot] = inside
    padded = padded.transpose(1, 2)  # (G, T * points, objects)

    # BCE(x, t) = x (1 - t) - log sigmoid(x)
    outside = logits @ (1 - padded)
    bce = (outside - nn.functional.logsigmoid(logits).sum(2, keepdim=True)) / inside.shape[1]
    probabilities = logits.sigmoid_()
    dice = 1 - (2 * (probabilities @ padded) + 1) / (
        probabilities.sum(2, keepdim=True) + padded.sum(1, keepdim=True) + 1
    )
    class_weight, mask_weight, dice_weight = weights
    mask_cost = (mask_weight * bce + dice_weight * dice).unflatten(1, (num_sets, num_layers, num_queries))
    mask_cost = mask_cost[problem, ..., slot]  # (objects, D, L, Q)
    class_cost = -class_logits.softmax(dim=-1).permute(2, 4, 0, 1, 3)[problem, class_labels]  # (objects, D, L, Q)
    return mask_cost + class_weight * class_cost


def assign(costs: list[np.ndarray], leave_surplus: bool = False) -> np.ndarray:
    """Assign each object its cheapest query, every query at most once, for each layer of each problem independently.

    Args:
        costs: For each problem (an image or a clip) `(D, L, Q, objects)`.
        leave_surplus: Leave objects beyond the number of queries, those that cost most, without one instead of raising.

    Returns:
        `(D, L, M)`: the query of each object, problem after problem; -1 for an object without one.

    Raises:
        ValueError: A problem has more objects than queries, without `leave_surplus`.
    """
    matches = []
    for problem, cost in enumerate(costs):
        if not leave_surplus:
            check_enough_queries(cost.shape[3], cost.shape[2], f"image {problem}")
        match = np.full((*cost.shape[:2], cost.shape[3]), -1, dtype=np.int64)
        for index in np.ndindex(cost.shape[:2]):
            queries, objects = linear_sum_assignment(cost[index])
            match[index][objects] = queries
        matches.append(match)
    return np.concatenate(matches, axis=2)


def check_enough_queries(num_objects: int, num_queries: int, where: str) -> None:
    """Check that each object can have a query of its own.

    Raises:
        ValueError: There are more objects than queries.
    """
    if num_objects > num_queries:
        raise ValueError(
            f"The labels of {where} hold {num_objects} objects, but the model has only {num_queries} queries and gives "
            "each object its own. Use a model with more queries (`num_queries`) or drop objects."
        )


def sample_masks(masks: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Sample masks `(M, T, H, W)` of any dtype at points `(M, T, points, 2)`.

    Returns:
        `(M, T, points)`, of the dtype of `points`.
    """
    size = max(1, _GROUP_ELEMENTS // masks[0, 0].numel())
    groups = zip(masks.flatten(0, 1).split(size), points.flatten(0, 1).split(size), strict=True)
    sampled = [sample_points(group.unsqueeze(1).to(points.dtype), at).squeeze(1) for group, at in groups]
    return torch.cat(sampled).unflatten(0, masks.shape[:2])


def _describe_non_finite(prediction: LayerPrediction, mask_features: torch.Tensor) -> str:
    """Return the message for costs that are not finite, with the tensors that cause it."""
    named = {"class_logits": prediction.class_logits, "mask_embeddings": prediction.mask_embeddings}
    named["mask_features"] = mask_features
    broken = [name for name, tensor in named.items() if not tensor.isfinite().all()]
    what = f"{' and '.join(broken)} hold NaN or infinity" if broken else "the mask logits overflow"
    return (
        f"Queries cannot be matched to objects: {what}. The training has diverged or the input is broken: check the "
        "pixel values, lower the learning rate, or train in bf16 instead of fp16."
    )
