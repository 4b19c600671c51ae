# SPDX-License-Identifier: Apache-2.0
"""Losses of clip queries: an object has one class, and a mask in every frame (Mask2Former-VIS, CRISP)."""

from collections.abc import Sequence

import torch

from ...precision import at_least_float32
from ..outputs import LayerPrediction
from .mask_classification import MaskClassificationLoss, name_losses
from .targets import Targets, VideoTargets


class ClipMaskClassificationLoss(MaskClassificationLoss):
    """Mask2Former-VIS's losses: a clip is matched as one, and its masks are compared frame by frame.

    The matching cost compares masks at the same points in all frames. In the losses every pair of an object and a frame
    is a mask with points of its own, empty where the object is absent. Their losses are summed and divided by the
    number of objects. Objects beyond the number of queries are left without a query (`leave_surplus`).

    Args:
        num_labels: Classes without no-object.
        kwargs: Weights and points as in `MaskClassificationLoss`.

    Source: Cheng et al., Mask2Former for Video Instance Segmentation, section 2.
    """

    leave_surplus = True

    def forward(
        self, predictions: Sequence[LayerPrediction], mask_features: torch.Tensor, targets: VideoTargets
    ) -> dict[str, torch.Tensor]:
        """Compute the weighted losses of D predictions of B clips of T frames.

        Args:
            predictions: Per layer class logits `(B, Q, K + 1)` and mask embeddings `(B, Q, C)`, oldest first.
            mask_features: `(B, T, C, h, w)`.
            targets: M objects of the B clips.

        Returns:
            Scalars `loss_ce`, `loss_mask`, `loss_dice` of the last prediction, `loss_ce_0`, ... of the earlier ones.

        Raises:
            ValueError: A matching cost is not finite.
        """
        with torch.autocast(mask_features.device.type, enabled=False):
            prediction = LayerPrediction(
                *(at_least_float32(torch.stack(part)).unsqueeze(1) for part in zip(*predictions, strict=True))
            )  # (D, 1, B, Q, .)
            mask_features = at_least_float32(mask_features)
            whole = torch.ones(len(targets.ids), 1, dtype=torch.bool)
            clips = targets.select(*targets.pairs(whole), 1, mask_features.device)
            matched = self._match(prediction, mask_features, clips)
            num_objects = mask_features.new_tensor([len(targets.ids)])
            values = self._losses(prediction, mask_features, clips, matched, num_objects)
        return name_losses({f"loss_{kind}": value.squeeze(1) for kind, value in values.items()})

    def _mask_losses(
        self, mask_embeddings: torch.Tensor, mask_features: torch.Tensor, targets: Targets, place: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute BCE and Dice `(D, 1, M)` of the query of each object, summed over the frames."""
        num_objects, num_frames = targets.masks.shape[:2]
        objects = torch.arange(num_objects, device=place.device).repeat_interleave(num_frames)
        frames = torch.arange(num_frames, device=place.device).repeat(num_objects)
        problem_index = targets.problem_index[objects] * num_frames + frames
        order = problem_index.argsort(stable=True)
        objects, frames = objects[order], frames[order]
        counts = [count for count in targets.counts for _ in range(num_frames)]
        images = Targets(
            class_labels=targets.class_labels[objects],
            masks=targets.masks[objects, frames].unsqueeze(1),
            problem_index=problem_index[order],
            counts=counts,
        )
        bce, dice = super()._mask_losses(
            mask_embeddings, mask_features.flatten(0, 1).unsqueeze(1), images, place[..., objects]
        )
        nothing = bce.new_zeros(place.shape)
        return nothing.index_add(2, objects, bce), nothing.index_add(2, objects, dice)
