# SPDX-License-Identifier: Apache-2.0
"""Distillation losses: keep a model that trains all its weights on new classes close to the older model.

The old model knows the first `num_old` of the K classes; no-object is the last column of class logits.

MiB: Cermelli et al., Modeling the Background for Incremental Learning in Semantic Segmentation, CVPR 2020.
CoMFormer: Cermelli et al., CoMFormer: Continual Learning in Semantic and Panoptic Segmentation, CVPR 2023.
PLOP: Douillard et al., PLOP: Learning without Forgetting for Continual Semantic Segmentation, CVPR 2021.
"""

from typing import Any

import torch
from torch import nn

from ...messages import check_choice
from .clip import ClipMaskClassificationLoss
from .mask_classification import average_over_ranks

DISTILLATIONS = ("unbiased", "plain", "squared")
POD_SCALES = (1, 2, 4)
POD_CELLS = ("rows_and_columns", "released")
SMALLEST_SHARE = 0.5  # of the pixels of its mask, those that a pseudo-label must own


class IncrementalClipLoss(ClipMaskClassificationLoss):
    """[`ClipMaskClassificationLoss`] with the cross entropy of class-incremental methods.

    Args:
        num_labels: Classes without no-object.
        num_old: First classes, which the old model knows and the labels leave out.
        unbiased: Count the probability of old classes as that of no-object (MiB), since an unlabelled object may belong
            to one of them.
        focal: `(alpha, gamma)` to weigh each query by `alpha * (1 - p) ** gamma`, p the probability of its target, and
            no-object like any class (CoMFormer); None for the cross entropy with its weight of no-object.
        kwargs: Weights and points as in `MaskClassificationLoss`.
    """

    def __init__(
        self,
        num_labels: int,
        num_old: int,
        unbiased: bool = False,
        focal: tuple[float, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_labels, **kwargs)
        self.num_old, self.unbiased, self.focal = num_old, unbiased, focal

    def _query_losses(self, class_logits: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.unbiased:  # log-probabilities are logits of themselves
            class_logits = unbiased_log_probabilities(class_logits, self.num_old)
            losses = -class_logits.gather(-1, classes.unsqueeze(-1)).squeeze(-1)
            weights = losses.new_ones(classes.shape)
            weights = weights.masked_fill(classes == self.num_labels, self.no_object_weight)
        else:
            losses, weights = super()._query_losses(class_logits, classes)
        if self.focal is None:
            return losses, weights
        alpha, gamma = self.focal
        return alpha * (1 - (-losses).exp()) ** gamma * losses, torch.ones_like(weights)


def unbiased_log_probabilities(class_logits: torch.Tensor, num_old: int) -> torch.Tensor:
    """Return log-probabilities `(..., K + 1)` whose no-object also stands for the old classes (MiB)."""
    log_probabilities = class_logits.log_softmax(dim=-1)
    background = torch.cat([log_probabilities[..., :num_old], log_probabilities[..., -1:]], dim=-1).logsumexp(dim=-1)
    return torch.cat([log_probabilities[..., :-1], background.unsqueeze(-1)], dim=-1)


def old_log_probabilities(class_logits: torch.Tensor, num_old: int, unbiased: bool = True) -> torch.Tensor:
    """Return the log-probabilities of the old classes and of no-object, to compare with those of the old model.

    Args:
        class_logits: `(..., K + 1)`.
        num_old: Classes of the old model.
        unbiased: Let no-object also stand for the new classes, which the old model takes for no-object (MiB). False
            leaves the new classes out.

    Returns:
        `(..., num_old + 1)`.
    """
    old, new = class_logits[..., :num_old], class_logits[..., num_old:]  # no-object is the last of the new
    if unbiased:
        merged = torch.cat([old, new.logsumexp(dim=-1, keepdim=True)], dim=-1)
        return merged - class_logits.logsumexp(dim=-1, keepdim=True)
    return torch.cat([old, new[..., -1:]], dim=-1).log_softmax(dim=-1)


def class_distillation_loss(
    class_logits: torch.Tensor,
    old_class_logits: torch.Tensor,
    kind: str = "unbiased",
    reweight: bool = False,
    alpha: float = 1.0,
) -> torch.Tensor:
    """Compare the classes of each query with those of the same query of the old model.

    Args:
        class_logits: `(B, Q, K + 1)`.
        old_class_logits: `(B, Q, num_old + 1)`.
        kind: `"unbiased"` (MiB) or `"plain"`: Kullback-Leibler divergence from the old probabilities to those of
            [`old_log_probabilities`]. `"squared"`: squared difference of plain probabilities, summed over the classes.
        reweight: Weigh queries by `(1 - p) ** 2`, p the old probability of no-object (CoMFormer).
        alpha: Factor on the old logits, an inverse temperature.

    Returns:
        A scalar: the mean over queries; with `reweight` the weighted mean over the queries of all ranks.

    Raises:
        ValueError: `kind` is unknown.
    """
    check_choice("kind", kind, DISTILLATIONS)
    log_probabilities = old_log_probabilities(class_logits, old_class_logits.shape[-1] - 1, kind == "unbiased")
    old = (alpha * old_class_logits).log_softmax(dim=-1)
    if kind == "squared":
        losses = (log_probabilities.exp() - old.exp()).square().sum(dim=-1)
    else:
        losses = (old.exp() * (old - log_probabilities)).sum(dim=-1)
    if not reweight:
        return losses.mean()
    weights = (1 - old[..., -1].exp()).square()
    return (weights * losses).sum() / average_over_ranks(weights.sum()).clamp(min=torch.finfo(losses.dtype).tiny)


def mask_distillation_loss(mask_logits: torch.Tensor, old_mask_logits: torch.Tensor) -> torch.Tensor:
    """Return the mean binary cross entropy between the masks of all queries and those of the old model."""
    return nn.functional.binary_cross_entropy_with_logits(mask_logits, old_mask_logits.sigmoid())


def pooled_distillation_loss(
    feature_maps: list[torch.Tensor], old_feature_maps: list[torch.Tensor], cells: str = "rows_and_columns"
) -> torch.Tensor:
    """Compute local POD (PLOP): the distance of feature maps, pooled along rows and columns inside cells.

    Args:
        feature_maps: `(N, C, h, w)` each, of any sizes.
        old_feature_maps: Those of the old model, of the same sizes.
        cells: Rule that divides a map into 1, 2 x 2 and 4 x 4 cells. `"rows_and_columns"`: cells have a half and a
            quarter of height and width. `"released"`: the released code takes the width for both; on maps that are
            wider than high its lower cells are cut. It divides by zero where a cell is empty; here the cell is left
            out.

    Returns:
        A scalar: Euclidean distance of all pooled values of an image, mean over the N images and over the maps.

    Raises:
        ValueError: `cells` is unknown.
    """
    check_choice("cells", cells, POD_CELLS)
    distances = [
        (_pooled(ours, cells) - _pooled(theirs, cells)).norm(dim=1).mean()
        for ours, theirs in zip(feature_maps, old_feature_maps, strict=True)
    ]
    return torch.stack(distances).mean()


def _pooled(feature_map: torch.Tensor, cells: str) -> torch.Tensor:
    """Pool a map `(N, C, h, w)` to `(N, pooled values)`."""
    height, width = feature_map.shape[-2:]
    pooled = []
    for scale in POD_SCALES:
        heights = _borders(width if cells == "released" else height, scale, cells)
        widths = _borders(width, scale, cells)
        for top, bottom in heights:
            for left, right in widths:
                cell = feature_map[..., top:bottom, left:right]
                if cell.numel():
                    pooled += [cell.mean(dim=3).flatten(1), cell.mean(dim=2).flatten(1)]
    return torch.cat(pooled, dim=1)


def _borders(length: int, count: int, cells: str) -> list[tuple[int, int]]:
    """Return start and end of `count` cells along a side of a map."""
    if cells == "released":
        side = length // count
        return [(index * side, (index + 1) * side) for index in range(count)]
    return [(index * length // count, (index + 1) * length // count) for index in range(count)]


@torch.no_grad()
def pseudo_labels(
    class_logits: torch.Tensor, mask_logits: torch.Tensor, label: dict[str, torch.Tensor], threshold: float = 0.0
) -> dict[str, torch.Tensor]:
    """Append to the labels of a clip the objects that the old model detects in unlabelled regions (CoMFormer).

    Each pixel of the clip is assigned to the query with the largest product of class probability and mask probability;
    pixels of labelled objects are assigned to none. A query becomes an object if its most probable class is not
    no-object, has a probability above the threshold, and the query owns more than half as many pixels as its mask has.
    The mask of the object is the part of the query's mask that the query owns.

    Args:
        class_logits: Class logits of the old model, `(Q, num_old + 1)`.
        mask_logits: Mask logits of the old model, `(Q, T, h, w)`, of any size.
        label: `{"class_labels": (M,) long, "ids": (M, T) long and -1 where absent, "masks": (M, T, H, W)}`.
        threshold: Smallest class probability, in 0..1.

    Returns:
        A label with the given objects, then the new ones.
    """
    scores, classes = class_logits.softmax(dim=-1).max(dim=-1)
    kept = (classes != class_logits.shape[-1] - 1) & (scores > threshold)
    scores, classes = scores[kept], classes[kept]
    if not len(scores):
        return label
    size = label["masks"].shape[-2:]
    probabilities = nn.functional.interpolate(
        mask_logits[kept], size=size, mode="bilinear", align_corners=False
    ).sigmoid()
    owner = (scores[:, None, None, None] * probabilities).argmax(dim=0)  # (T, H, W)
    labelled = label["masks"].to(owner.device).bool().any(dim=0)
    own = owner == torch.arange(len(scores), device=owner.device)[:, None, None, None]
    own &= ~labelled
    inside = probabilities >= 0.5
    masks = own & inside
    left = own.sum(dim=(1, 2, 3)) > SMALLEST_SHARE * inside.sum(dim=(1, 2, 3))
    chosen = left & masks.any(dim=3).any(dim=2).any(dim=1)
    masks = masks[chosen].to(label["masks"].device)
    first = int(label["ids"].max()) + 1 if label["ids"].numel() else 0
    numbers = torch.arange(max(first, 0), max(first, 0) + len(masks), device=label["ids"].device)
    ids = torch.where(masks.any(dim=3).any(dim=2).to(label["ids"].device), numbers[:, None], -1)
    return {
        "class_labels": torch.cat([label["class_labels"], classes[chosen].to(label["class_labels"])]),
        "ids": torch.cat([label["ids"], ids.to(label["ids"])]),
        "masks": torch.cat([label["masks"], masks.to(label["masks"])]),
    }


__all__ = [
    "IncrementalClipLoss",
    "class_distillation_loss",
    "mask_distillation_loss",
    "old_log_probabilities",
    "pooled_distillation_loss",
    "pseudo_labels",
    "unbiased_log_probabilities",
]
