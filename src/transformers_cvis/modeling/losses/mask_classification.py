# SPDX-License-Identifier: Apache-2.0
"""Mask classification losses of matched queries."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedConfig

from ...precision import at_least_float32
from ..outputs import LayerPrediction
from .matching import assign, matching_costs, sample_masks
from .points import PointSampler, sample_points
from .targets import Targets

CLASSIFICATION_LOSSES = ("ce", "focal")
FOCAL_ALPHA, FOCAL_GAMMA, FOCAL_SCALE = 5.0, 1.0, 50.0  # of released code of ECLIPSE, CRISP and HVPL


class MaskClassificationLoss(nn.Module):
    """Mask2Former's losses of images: matching, then cross entropy of classes, BCE and Dice of masks at points.

    Predictions of all layers are matched and scored together, each for itself. Computed in float32, or float64 when the
    predictions are float64, whatever autocast says. Dense mask logits exist for matched queries only.

    Args:
        num_labels: classes without no-object.
        class_weight, mask_weight, dice_weight: of the matching cost and of the losses.
        no_object_weight: weight of the no-object class in the cross entropy.
        num_points, oversample_ratio, importance_sample_ratio: see `PointSampler`.
        classification_loss: `"ce"`, softmax cross entropy; or `"focal"`, see `sigmoid_focal_losses`, which needs no
            `no_object_weight`.

    Attributes:
        leave_surplus: what becomes of objects beyond the number of queries. False: they are an error. True: those that
            cost most are left without a query, but counted.

    Raises:
        ValueError: when `classification_loss` is neither.

    Source: Cheng et al., Masked-attention Mask Transformer for Universal Image Segmentation, sections 3.3 and 4.1.
    """

    leave_surplus = False

    def __init__(
        self,
        num_labels: int,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        classification_loss: str = "ce",
    ):
        super().__init__()
        if classification_loss not in CLASSIFICATION_LOSSES:
            raise ValueError(
                f"`classification_loss` must be one of {', '.join(CLASSIFICATION_LOSSES)}, got {classification_loss!r}."
            )
        self.num_labels = num_labels
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.no_object_weight = no_object_weight
        self.classification_loss = classification_loss
        self.point_sampler = PointSampler(num_points, oversample_ratio, importance_sample_ratio)

    @staticmethod
    def settings_of(config: PreTrainedConfig) -> dict[str, float]:
        """Return the weights and points that a configuration names, as arguments of this class and of its heirs.

        Args:
            config: of a frame detector or of a video model.

        Returns:
            The arguments by name, from `class_weight` to `importance_sample_ratio`.
        """
        return {
            "class_weight": config.class_weight,
            "mask_weight": config.mask_weight,
            "dice_weight": config.dice_weight,
            "no_object_weight": config.no_object_weight,
            "num_points": config.train_num_points,
            "oversample_ratio": config.oversample_ratio,
            "importance_sample_ratio": config.importance_sample_ratio,
        }

    def forward(
        self, predictions: Sequence[LayerPrediction], mask_features: torch.Tensor, labels: list[dict]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Weighted losses and matches of D predictions of N images.

        Args:
            predictions: class logits `(N, Q, K + 1)` and mask embeddings `(N, Q, C)` of each layer, oldest first.
            mask_features: `(N, C, h, w)`.
            labels: per image `{"class_labels": (n,) long, "masks": (n, H, W)}`, H x W the padded network input.

        Returns:
            Scalars `loss_ce`, `loss_mask`, `loss_dice` of the last prediction and `loss_ce_0`, ... of the earlier ones;
            and the matched queries `(D, objects)`, objects concatenated image after image, -1 for one without.

        Raises:
            ValueError: when labels do not fit, an image has more objects than queries (unless `leave_surplus`), or a
                cost is not finite.
        """
        with torch.autocast(mask_features.device.type, enabled=False):
            prediction, mask_features = self._problems(predictions, mask_features)
            targets = Targets.from_frame_labels(labels, self.num_labels, like=mask_features)
            matched = self._match(prediction, mask_features, targets)
            num_objects = mask_features.new_tensor([len(targets.class_labels)])
            values = self._losses(prediction, mask_features, targets, matched, num_objects)
        return name_losses({f"loss_{kind}": value.squeeze(1) for kind, value in values.items()}), matched.squeeze(1)

    @torch.no_grad()
    def match(
        self, predictions: Sequence[LayerPrediction], mask_features: torch.Tensor, labels: list[dict]
    ) -> torch.Tensor:
        """Only the matched queries `(D, objects)`; arguments and errors as in `forward`."""
        with torch.autocast(mask_features.device.type, enabled=False):
            prediction, mask_features = self._problems(predictions, mask_features)
            targets = Targets.from_frame_labels(labels, self.num_labels, like=mask_features)
            return self._match(prediction, mask_features, targets).squeeze(1)

    def _problems(self, predictions, mask_features):
        """Images as problems of one layer group and one frame: `(D, 1, N, Q, .)` and `(N, 1, C, h, w)`."""
        prediction = LayerPrediction(
            *(at_least_float32(torch.stack(part)).unsqueeze(1) for part in zip(*predictions, strict=True))
        )
        return prediction, at_least_float32(mask_features).unsqueeze(1)

    def _costs(self, prediction, mask_features, targets):
        return matching_costs(
            prediction,
            mask_features,
            targets,
            self.point_sampler,
            self.class_weight,
            self.mask_weight,
            self.dice_weight,
        )

    def _match(self, prediction, mask_features, targets) -> torch.Tensor:
        matched = assign(self._costs(prediction, mask_features, targets), self.leave_surplus)
        return torch.from_numpy(matched).to(mask_features.device)

    def _losses(
        self,
        prediction: LayerPrediction,
        mask_features: torch.Tensor,
        targets: Targets,
        matched: torch.Tensor,
        num_objects: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Weighted losses `(D, groups)`.

        Args:
            prediction: `(D, L, P, Q, .)`.
            mask_features: `(P, T, C, h, w)`.
            targets: M objects of the P problems.
            matched: `(D, L, M)`: the query of each object, -1 where it has none.
            num_objects: `(groups,)`: objects in this rank's batch; problem p is in group p % groups.
        """
        num_problems, num_queries = prediction.class_logits.shape[2:4]
        num_groups = len(num_objects)
        place = targets.problem_index * num_queries + matched  # (D, L, M): index into the P * Q queries
        place = place.masked_fill(matched < 0, num_problems * num_queries)  # behind them for objects without one
        ce = self._class_loss(prediction.class_logits, targets.class_labels, place, num_groups)
        bce, dice = self._mask_losses(prediction.mask_embeddings, mask_features, targets, place)
        group = targets.problem_index % num_groups
        total = ce.new_zeros(2, len(ce), num_groups).index_add(2, group, torch.stack([bce, dice]).sum(2))
        total = total / average_over_ranks(num_objects).clamp(min=1)
        return {"ce": self.class_weight * ce, "mask": self.mask_weight * total[0], "dice": self.dice_weight * total[1]}

    def _class_loss(self, class_logits, class_labels, place, num_groups) -> torch.Tensor:
        """Class loss `(D, groups)`, mean over all queries of a group weighted by class; unmatched: no-object."""
        # Where objects share a query, the last of them decides.
        num_problems, num_queries = class_logits.shape[2:4]
        holder = place.new_full((*place.shape[:2], num_problems * num_queries + 1), -1)
        objects = torch.arange(place.shape[2], device=place.device).expand_as(place)
        holder = holder.scatter_reduce(2, place, objects, "amax")[..., :-1]
        classes = torch.cat([class_labels, class_labels.new_tensor([self.num_labels])])[holder]  # (D, L, P * Q)
        losses, weights = self._query_losses(class_logits.flatten(2, 3), classes)
        per_group = [
            part.unflatten(2, (-1, num_groups, num_queries)).sum(dim=(1, 2, 4)) for part in (weights * losses, weights)
        ]
        return per_group[0] / average_over_ranks(per_group[1])

    def _query_losses(self, class_logits, classes) -> tuple[torch.Tensor, torch.Tensor]:
        """Class loss and weight of each query; logits `(..., Q, K + 1)` and classes `(..., Q)` -> `(..., Q)`."""
        if self.classification_loss == "focal":
            losses = sigmoid_focal_losses(class_logits, classes)
            return losses, torch.ones_like(losses)
        losses = -class_logits.log_softmax(dim=-1).gather(-1, classes.unsqueeze(-1)).squeeze(-1)
        weights = losses.new_ones(classes.shape).masked_fill_(classes == self.num_labels, self.no_object_weight)
        return losses, weights

    def _mask_losses(self, mask_embeddings, mask_features, targets, place) -> tuple[torch.Tensor, torch.Tensor]:
        """BCE and Dice `(D, L, M)` of each object's query at points of each frame, those of all frames as one set."""
        num_sets, num_layers, num_objects = place.shape
        if num_objects == 0:
            nothing = (mask_embeddings.sum() + mask_features.sum()) * 0  # part of the graph on every rank
            return (nothing.expand(place.shape),) * 2

        sets = torch.arange(num_sets * num_layers, device=place.device).view(num_sets, num_layers, 1)
        num_places = mask_embeddings.shape[2] * mask_embeddings.shape[3]
        found = place < num_places
        rows = (sets * num_places + place.where(found, 0)).permute(2, 0, 1).flatten()
        embeddings = mask_embeddings.flatten(0, 3)[rows]  # (M * D * L, C)
        logits = torch.cat(
            [
                embedding.expand(len(features), -1, -1) @ features.flatten(2)  # (T, objects * D * L, h * w)
                for embedding, features in zip(
                    embeddings.split([count * num_sets * num_layers for count in targets.counts]),
                    mask_features.unbind(0),
                    strict=True,
                )
                if len(embedding)
            ],
            dim=1,
        )
        height, width = mask_features.shape[-2:]
        logits = logits.view(-1, num_sets * num_layers, height, width)  # (T * M, D * L, h, w)
        points = self.point_sampler.loss_points(logits.detach())  # (T * M, D * L, points, 2)
        inside = sample_masks(
            targets.masks.transpose(0, 1), points.flatten(1, 2).unflatten(0, (-1, num_objects))
        )  # (T, M, D * L * points)
        inside = inside.unflatten(2, (num_sets * num_layers, -1))
        logits = sample_points(logits.flatten(0, 1).unsqueeze(1), points.flatten(0, 1)).view_as(inside)

        bce = nn.functional.binary_cross_entropy_with_logits(logits, inside, reduction="none").mean(dim=(0, 3))
        probabilities = logits.sigmoid()
        overlap = (probabilities * inside).sum(dim=(0, 3))
        dice = 1 - (2 * overlap + 1) / (probabilities.sum(dim=(0, 3)) + inside.sum(dim=(0, 3)) + 1)
        return tuple(loss.T.unflatten(0, (num_sets, num_layers)) * found for loss in (bce, dice))


def sigmoid_focal_losses(class_logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Focal loss of each query, every class and no-object being a yes or no of its own.

    Each of the K + 1 entries costs `alpha * (1 - p) ** gamma * -log(p)`, p the probability that its sigmoid gives to
    what is right; a query costs their mean times a scale. Alpha, gamma and scale are those of released code of HVPL.

    Args:
        class_logits: `(..., Q, K + 1)`.
        classes: `(..., Q)` long, K for no-object.

    Returns:
        `(..., Q)`.

    Source: Lin et al., Focal Loss for Dense Object Detection, section 3.
    """
    signs = torch.full_like(class_logits, -1.0).scatter(-1, classes.unsqueeze(-1), 1.0)
    wrong = -signs * class_logits  # logits of what is not right
    losses = FOCAL_ALPHA * wrong.sigmoid() ** FOCAL_GAMMA * nn.functional.softplus(wrong)
    return FOCAL_SCALE * losses.mean(dim=-1)


def average_over_ranks(counts: torch.Tensor) -> torch.Tensor:
    """Mean of `counts` over the ranks of distributed training.

    Losses divided by it give, after the gradients are averaged, the gradient of one process with the whole batch.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        counts = counts.clone()
        torch.distributed.all_reduce(counts)
        counts = counts / torch.distributed.get_world_size()
    return counts


def name_losses(values: dict[str, torch.Tensor], suffix: str = "") -> dict[str, torch.Tensor]:
    """One scalar a layer: `(D,)` losses, the last under its name, the earlier ones with `_0`, `_1`, ..."""
    named = {}
    for name, value in values.items():
        *auxiliary, last = value.unbind(0)
        named[name + suffix] = last
        named.update({f"{name}_{layer}{suffix}": loss for layer, loss in enumerate(auxiliary)})
    return named
