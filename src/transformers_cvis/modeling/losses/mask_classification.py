# SPDX-License-Identifier: Apache-2.0
"""Mask classification losses of matched queries."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig

from ...messages import check_choice
from ...precision import at_least_float32
from ..outputs import LayerPrediction
from .matching import assign, matching_costs, sample_masks
from .points import PointSampler, sample_points
from .targets import Targets

CLASSIFICATION_LOSSES = ("ce", "focal")
FOCAL_ALPHA, FOCAL_GAMMA, FOCAL_SCALE = 5.0, 1.0, 50.0  # as in the released code of ECLIPSE, CRISP and HVPL


class MaskClassificationLoss(nn.Module):
    """Mask2Former's losses of images: matching, then cross entropy of classes, BCE and Dice of masks at points.

    Predictions of all layers are scored in one pass, and each is matched independently. Computation is in float32, or
    float64 for float64 predictions, also under autocast. Dense mask logits are computed for matched queries only.

    Subclasses for clips and videos call and override `_match`, `_costs`, `_losses`, `_query_losses` and `_mask_losses`.
    These take D predictions of L layer groups of P problems, which are matched independently: images here, clips or
    videos in subclasses.

    Args:
        num_labels: Classes without no-object.
        class_weight: Weight of the classes in the matching cost and of their loss.
        mask_weight: Weight of the BCE in the matching cost and of its loss.
        dice_weight: Weight of the Dice in the matching cost and of its loss.
        no_object_weight: Weight of the no-object class in the cross entropy.
        num_points: See `PointSampler`.
        oversample_ratio: See `PointSampler`.
        importance_sample_ratio: See `PointSampler`.
        classification_loss: `"ce"`, softmax cross entropy; or `"focal"`, see `sigmoid_focal_losses`, which does not use
            `no_object_weight`.

    Attributes:
        leave_surplus: Whether objects beyond the number of queries, those that cost most, are left without a query and
            counted. False raises an error.

    Raises:
        ValueError: `classification_loss` is unknown.

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
    ) -> None:
        super().__init__()
        check_choice("classification_loss", classification_loss, CLASSIFICATION_LOSSES)
        self.num_labels = num_labels
        self.class_weight = class_weight
        self.mask_weight = mask_weight
        self.dice_weight = dice_weight
        self.no_object_weight = no_object_weight
        self.classification_loss = classification_loss
        self.point_sampler = PointSampler(num_points, oversample_ratio, importance_sample_ratio)

    @staticmethod
    def settings_of(config: PreTrainedConfig) -> dict[str, float]:
        """Return the weights and points of a configuration, as arguments of this class and of its subclasses.

        Args:
            config: Configuration of a frame detector or of a video model.

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
        """Compute the weighted losses and the matches of D predictions of N images.

        Args:
            predictions: Class logits `(N, Q, K + 1)` and mask embeddings `(N, Q, C)` of each layer, oldest first.
            mask_features: `(N, C, h, w)`.
            labels: Per image `{"class_labels": (M,) long, "masks": (M, H, W)}`.

        Returns:
            Scalars `loss_ce`, `loss_mask`, `loss_dice` of the last prediction and `loss_ce_0`, ... of the earlier ones;
            and the matched queries `(D, M)`, objects concatenated image after image, -1 for an object without a query.

        Raises:
            ValueError: Labels do not fit, an image has more objects than queries (unless `leave_surplus`), or a cost is
                not finite.
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
        """Return only the matched queries `(D, M)`; arguments and errors are those of `forward`."""
        with torch.autocast(mask_features.device.type, enabled=False):
            prediction, mask_features = self._problems(predictions, mask_features)
            targets = Targets.from_frame_labels(labels, self.num_labels, like=mask_features)
            return self._match(prediction, mask_features, targets).squeeze(1)

    def _problems(
        self, predictions: Sequence[LayerPrediction], mask_features: torch.Tensor
    ) -> tuple[LayerPrediction, torch.Tensor]:
        """Turn images into problems of one layer group and one frame: `(D, 1, N, Q, .)` and `(N, 1, C, h, w)`."""
        prediction = LayerPrediction(
            *(at_least_float32(torch.stack(part)).unsqueeze(1) for part in zip(*predictions, strict=True))
        )
        return prediction, at_least_float32(mask_features).unsqueeze(1)

    def _costs(self, prediction: LayerPrediction, mask_features: torch.Tensor, targets: Targets) -> list[np.ndarray]:
        """Compute the matching costs `(D, L, Q, objects)` of each problem, on the host; see `matching_costs`."""
        return matching_costs(
            prediction,
            mask_features,
            targets,
            self.point_sampler,
            self.class_weight,
            self.mask_weight,
            self.dice_weight,
        )

    def _match(self, prediction: LayerPrediction, mask_features: torch.Tensor, targets: Targets) -> torch.Tensor:
        """Match each object to its cheapest query: `(D, L, M)`, -1 for an object without one."""
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
        """Compute the weighted losses of groups of problems; problem p is in group `p % groups`.

        Args:
            prediction: `(D, L, P, Q, .)`.
            mask_features: `(P, T, C, h, w)`.
            targets: M objects of the P problems.
            matched: Query of each object `(D, L, M)`, -1 for an object without one.
            num_objects: Objects of each group in the batch of this rank, `(groups,)`.

        Returns:
            `"ce"`, `"mask"` and `"dice"`, each `(D, groups)`.
        """
        num_problems, num_queries = prediction.class_logits.shape[2:4]
        num_groups = len(num_objects)
        place = targets.problem_index * num_queries + matched  # (D, L, M): index into the P * Q queries
        place = place.masked_fill(matched < 0, num_problems * num_queries)  # past the last for objects without one
        ce = self._class_loss(prediction.class_logits, targets.class_labels, place, num_groups)
        bce, dice = self._mask_losses(prediction.mask_embeddings, mask_features, targets, place)
        group = targets.problem_index % num_groups
        total = ce.new_zeros(2, len(ce), num_groups).index_add(2, group, torch.stack([bce, dice]).sum(2))
        total = total / average_over_ranks(num_objects).clamp(min=1)
        return {"ce": self.class_weight * ce, "mask": self.mask_weight * total[0], "dice": self.dice_weight * total[1]}

    def _class_loss(
        self, class_logits: torch.Tensor, class_labels: torch.Tensor, place: torch.Tensor, num_groups: int
    ) -> torch.Tensor:
        """Compute the class loss `(D, groups)`: the mean over all queries of a group, weighted by class.

        The target of a query without an object is no-object; that of a query with several is the last object.
        """
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

    def _query_losses(self, class_logits: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute class loss and weight `(..., Q)` of each query from `(..., Q, K + 1)` and classes `(..., Q)`."""
        if self.classification_loss == "focal":
            losses = sigmoid_focal_losses(class_logits, classes)
            return losses, torch.ones_like(losses)
        losses = -class_logits.log_softmax(dim=-1).gather(-1, classes.unsqueeze(-1)).squeeze(-1)
        weights = losses.new_ones(classes.shape).masked_fill_(classes == self.num_labels, self.no_object_weight)
        return losses, weights

    def _mask_losses(
        self, mask_embeddings: torch.Tensor, mask_features: torch.Tensor, targets: Targets, place: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute BCE and Dice `(D, L, M)` of the query of each object, at the points of all frames as one set."""
        num_sets, num_layers, num_objects = place.shape
        if num_objects == 0:
            nothing = (mask_embeddings.sum() + mask_features.sum()) * 0  # part of the graph on every rank
            return nothing.expand(place.shape), nothing.expand(place.shape)

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
        bce, dice = (loss.T.unflatten(0, (num_sets, num_layers)) * found for loss in (bce, dice))
        return bce, dice


def sigmoid_focal_losses(class_logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Compute the focal loss of each query, each class and no-object treated as an independent binary problem.

    Each of the K + 1 entries costs `alpha * (1 - p) ** gamma * -log(p)`, where p is the probability that its sigmoid
    gives to the correct outcome; a query costs their mean times a scale. Alpha, gamma and scale are those of the
    released code of HVPL.

    Args:
        class_logits: `(..., Q, K + 1)`.
        classes: `(..., Q)` long, K for no-object.

    Returns:
        `(..., Q)`.

    Source: Lin et al., Focal Loss for Dense Object Detection, section 3.
    """
    signs = torch.full_like(class_logits, -1.0).scatter(-1, classes.unsqueeze(-1), 1.0)
    wrong = -signs * class_logits  # logits of the incorrect outcome
    losses = FOCAL_ALPHA * wrong.sigmoid() ** FOCAL_GAMMA * nn.functional.softplus(wrong)
    return FOCAL_SCALE * losses.mean(dim=-1)


def average_over_ranks(counts: torch.Tensor) -> torch.Tensor:
    """Average `counts` over the ranks of distributed training.

    Losses divided by it give, once gradients are averaged, the gradient of one process with the whole batch.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        counts = counts.clone()
        torch.distributed.all_reduce(counts)
        counts = counts / torch.distributed.get_world_size()
    return counts


def name_losses(values: dict[str, torch.Tensor], suffix: str = "") -> dict[str, torch.Tensor]:
    """Split losses `(D,)` into scalars: the last under its name, the earlier ones with `_0`, `_1`, ... appended."""
    named: dict[str, torch.Tensor] = {}
    for name, value in values.items():
        *auxiliary, last = value.unbind(0)
        named[name + suffix] = last
        named.update({f"{name}_{layer}{suffix}": loss for layer, loss in enumerate(auxiliary)})
    return named
