# SPDX-License-Identifier: Apache-2.0
"""What keeps a model that trains all its weights on new classes close to the model that it was before.

The old model knows the first `num_old` classes. B clips, T frames, Q queries, K classes now; no-object is the last
column of class logits.

MiB: Cermelli et al., Modeling the Background for Incremental Learning in Semantic Segmentation, CVPR 2020.
CoMFormer: Cermelli et al., CoMFormer: Continual Learning in Semantic and Panoptic Segmentation, CVPR 2023.
PLOP: Douillard et al., PLOP: Learning without Forgetting for Continual Semantic Segmentation, CVPR 2021.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .clip import ClipMaskClassificationLoss
from .mask_classification import average_over_ranks

DISTILLATIONS = ("unbiased", "plain", "squared")
POD_SCALES = (1, 2, 4)
POD_CELLS = ("rows_and_columns", "released")
SMALLEST_SHARE = 0.5  # pixels that go to a pseudo-label, as a share of those of its mask


class IncrementalClipLoss(ClipMaskClassificationLoss):
    """[`ClipMaskClassificationLoss`] with the cross entropy of class-incremental methods.

    Args:
        num_labels: classes without no-object.
        num_old: of these the first, which the labels leave out.
        unbiased: count the probability of old classes as that of no-object (MiB), since an unlabelled
            object may be of one of them.
        focal: `(alpha, gamma)` to weigh each query by `alpha * (1 - p) ** gamma`, p the probability of its target, and
            no-object as any class (CoMFormer); None for the cross entropy with its weight of no-object.
        kwargs: weights and points as in `MaskClassificationLoss`.
    """

    def __init__(
        self,
        num_labels: int,
        num_old: int,
        unbiased: bool = False,
        focal: tuple[float, float] | None = None,
        **kwargs,
    ):
        super().__init__(num_labels, **kwargs)
        self.num_old, self.unbiased, self.focal = num_old, unbiased, focal

    def _query_losses(self, class_logits, classes) -> tuple[Tensor, Tensor]:
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


def unbiased_log_probabilities(class_logits: Tensor, num_old: int) -> Tensor:
    """Log-probabilities `(..., K + 1)` in which no-object stands for the old classes, too (MiB)."""
    log_probabilities = class_logits.log_softmax(dim=-1)
    background = torch.cat([log_probabilities[..., :num_old], log_probabilities[..., -1:]], dim=-1).logsumexp(dim=-1)
    return torch.cat([log_probabilities[..., :-1], background.unsqueeze(-1)], dim=-1)


def old_log_probabilities(class_logits: Tensor, num_old: int, unbiased: bool = True) -> Tensor:
    """Log-probabilities of the old classes and of no-object, `(..., num_old + 1)`, to compare with the old model's.

    Args:
        class_logits: `(..., K + 1)`
        unbiased: no-object stands for the new classes, too, which the old model saw as such (MiB). False:
            new classes are left out.
    """
    old, new = class_logits[..., :num_old], class_logits[..., num_old:]  # no-object is the last of the new
    if unbiased:
        merged = torch.cat([old, new.logsumexp(dim=-1, keepdim=True)], dim=-1)
        return merged - class_logits.logsumexp(dim=-1, keepdim=True)
    return torch.cat([old, new[..., -1:]], dim=-1).log_softmax(dim=-1)


def class_distillation_loss(
    class_logits: Tensor, old_class_logits: Tensor, kind: str = "unbiased", reweight: bool = False, alpha: float = 1.0
) -> Tensor:
    """How far the classes of each query are from those of the same query of the old model.

    Args:
        class_logits: `(B, Q, K + 1)`
        old_class_logits: `(B, Q, num_old + 1)`
        kind: `"unbiased"` (MiB) or `"plain"`: Kullback-Leibler divergence from the old probabilities to those of
            [`old_log_probabilities`]. `"squared"`: squared difference of plain probabilities, summed over the classes.
        reweight: weigh queries by `(1 - p) ** 2`, p the old probability of no-object (CoMFormer).
        alpha: factor on the old logits, an inverse temperature.

    Returns:
        A scalar, the mean over queries, weighted over all ranks where they have weights.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in DISTILLATIONS:
        raise ValueError(f"`kind` must be one of {', '.join(DISTILLATIONS)}, got {kind!r}.")
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


def mask_distillation_loss(mask_logits: Tensor, old_mask_logits: Tensor) -> Tensor:
    """Mean binary cross entropy of the masks of all queries and those of the same queries of the old model."""
    return F.binary_cross_entropy_with_logits(mask_logits, old_mask_logits.sigmoid())


def pooled_distillation_loss(
    feature_maps: list[Tensor], old_feature_maps: list[Tensor], cells: str = "rows_and_columns"
) -> Tensor:
    """Local POD (PLOP): distance of feature maps, pooled along rows and along columns inside of cells.

    Args:
        feature_maps: `(N, C, height, width)` each, of any sizes.
        old_feature_maps: of the same sizes.
        cells: a map is divided into 1, 2 x 2 and 4 x 4 cells. `"rows_and_columns"`: of a half and a quarter of height
            and width. `"released"`: the released code takes the width for both; on maps that are wider than high its
            lower cells are cut, and where nothing is left of one, it divides by zero (here it is left out).

    Returns:
        A scalar: Euclidean distance of all pooled values of an image, mean over the N images and over the maps.

    Raises:
        ValueError: unknown cells.
    """
    if cells not in POD_CELLS:
        raise ValueError(f"`cells` must be one of {', '.join(POD_CELLS)}, got {cells!r}.")
    distances = [
        (_pooled(ours, cells) - _pooled(theirs, cells)).norm(dim=1).mean()
        for ours, theirs in zip(feature_maps, old_feature_maps, strict=True)
    ]
    return torch.stack(distances).mean()


def _pooled(feature_map: Tensor, cells: str) -> Tensor:
    """(N, C, height, width) -> (N, pooled values)"""
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
    if cells == "released":
        side = length // count
        return [(index * side, (index + 1) * side) for index in range(count)]
    return [(index * length // count, (index + 1) * length // count) for index in range(count)]


@torch.no_grad()
def pseudo_labels(
    class_logits: Tensor, mask_logits: Tensor, label: dict[str, Tensor], threshold: float = 0.0
) -> dict[str, Tensor]:
    """The labels of a clip, and behind them what the old model sees where nothing is labelled (CoMFormer).

    Pixels of the clip go to the query with the largest product of class probability and mask probability; those of a
    labelled object to none. A query becomes an object when its class is one, with a probability above the threshold,
    and the pixels that go to it are more than half as many as its mask has; those of its mask are the object's.

    Args:
        class_logits: of the old model `(Q, num_old + 1)`.
        mask_logits: of the old model `(Q, T, height, width)`, at any size.
        label: `{"class_labels": (n,) long, "ids": (n, T) long and -1 where absent, "masks": (n, T, H, W)}`.
        threshold: of the class probability, in 0..1.

    Returns:
        The same, with more objects.
    """
    scores, classes = class_logits.softmax(dim=-1).max(dim=-1)
    kept = (classes != class_logits.shape[-1] - 1) & (scores > threshold)
    scores, classes = scores[kept], classes[kept]
    if not len(scores):
        return label
    size = label["masks"].shape[-2:]
    probabilities = F.interpolate(mask_logits[kept], size=size, mode="bilinear", align_corners=False).sigmoid()
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
