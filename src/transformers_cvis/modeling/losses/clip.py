# SPDX-License-Identifier: Apache-2.0
"""Losses of clip queries: an object has one class and, in every frame, a mask of its own (Mask2Former-VIS, CRISP)."""

from collections.abc import Sequence

import torch

from ...precision import at_least_float32
from ..outputs import LayerPrediction
from .mask_classification import MaskClassificationLoss, name_losses
from .targets import Targets, VideoTargets


class ClipMaskClassificationLoss(MaskClassificationLoss):
    """Mask2Former-VIS's losses: a clip is matched as one, its masks are compared frame by frame.

    The matching cost compares masks at the same points in all frames. In the losses every pair of an object and a frame
    is a mask with points of its own, an empty one where the object is absent; they are summed and divided by the number
    of objects. Objects beyond the number of queries are no error (`leave_surplus`).

    Args:
        num_labels: classes without no-object.
        kwargs: weights and points as in `MaskClassificationLoss`.

    Source: Cheng et al., Mask2Former for Video Instance Segmentation, section 2.
    """

    leave_surplus = True

    def forward(
        self, predictions: Sequence[LayerPrediction], mask_features: torch.Tensor, targets: VideoTargets
    ) -> dict[str, torch.Tensor]:
        """Weighted losses of D predictions of B clips of T frames.

        Args:
            predictions: per layer class logits `(B, Q, K + 1)` and mask embeddings `(B, Q, C)`, oldest first.
            mask_features: `(B, T, C, h, w)`.
            targets: M objects of the B clips.

        Returns:
            Scalars `loss_ce`, `loss_mask`, `loss_dice` of the last prediction, `loss_ce_0`, ... of the earlier ones.

        Raises:
            ValueError: when a matching cost is not finite.
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

    def _mask_losses(self, mask_embeddings, mask_features, targets, place) -> tuple[torch.Tensor, torch.Tensor]:
        """BCE and Dice `(D, 1, M)` of each object's query, summed over the frames."""
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
        losses = super()._mask_losses(
            mask_embeddings, mask_features.flatten(0, 1).unsqueeze(1), images, place[..., objects]
        )
        return tuple(loss.new_zeros(place.shape).index_add(2, objects, loss) for loss in losses)
