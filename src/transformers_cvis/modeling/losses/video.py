# SPDX-License-Identifier: Apache-2.0
"""Losses of video queries: a sample as one clip (VITA), or clip by clip with one assignment of labels (GenVIS)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...messages import check_choice
from ...precision import at_least_float32
from ..outputs import LayerPrediction
from .mask_classification import MaskClassificationLoss, average_over_ranks, name_losses
from .similarity import similarity_losses
from .targets import VideoTargets
from .uvla import RULES, unified_video_label_assignment


class VideoMaskClassificationLoss(MaskClassificationLoss):
    """VITA's losses: mask classification of video queries and similarity to the frame queries of the same object.

    The frames of a sample are one clip; the points of a mask in all its frames are compared as one set. The L frame
    decoder layers are L problems per video with the same targets.

    Args:
        num_labels: Classes without no-object.
        name: Part of the keys of the losses, `loss_{name}_ce` and so on.
        similarity_weight: Weight of the similarity loss.
        kwargs: Weights and points as in `MaskClassificationLoss`.

    Source: Heo et al., VITA: Video Instance Segmentation via Object Token Association, section 3.3.
    """

    uvla = "paper"  # has no effect on one clip, in which every object is new

    def __init__(self, num_labels: int, name: str, similarity_weight: float = 0.5, **kwargs: Any) -> None:
        super().__init__(num_labels, **kwargs)
        self.name = name
        self.similarity_weight = similarity_weight

    def forward(
        self,
        predictions: Sequence[LayerPrediction],
        mask_features: torch.Tensor,
        targets: VideoTargets,
        frame_matches: torch.Tensor,
        frame_similarity: torch.Tensor,
        video_similarity: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Compute the weighted losses of B videos.

        Args:
            predictions: Per decoder layer class logits `(L, B, Q, K + 1)` and mask embeddings `(L, B, Q, C)`.
            mask_features: `(B, T, C, h, w)`.
            targets: M objects of the B videos.
            frame_matches: Frame query of each object in each frame, `(L, M, T)`, -1 where it has none.
            frame_similarity: Similarity embeddings of the frame queries, `(L, B, T, F, C)`.
            video_similarity: Those of the video queries of the last decoder layer, `(L, B, Q, C)`.

        Returns:
            Scalars `loss_{name}_ce`, `_mask`, `_dice`, `_sim` of the last layer, `loss_{name}_ce_0`, ... of the others.

        Raises:
            ValueError: A video has more objects than queries (unless `leave_surplus`), or a matching cost is not
                finite.
        """
        losses = self._clip_losses(
            [predictions], mask_features, targets, frame_matches, frame_similarity, [video_similarity]
        )
        return name_losses({key: value.squeeze(1) for key, value in losses.items()})

    def _clip_losses(
        self,
        predictions: Sequence[Sequence[LayerPrediction]],
        mask_features: torch.Tensor,
        targets: VideoTargets,
        frame_matches: torch.Tensor,
        frame_similarity: torch.Tensor,
        video_similarity: Sequence[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Compute the weighted losses `(D, clips)` by name; the similarity has one row, that of the last layer."""
        num_clips = len(predictions)
        clip_ids = targets.clip_ids(num_clips)
        visible = (clip_ids != -1).any(dim=2)  # (M, clips)
        with torch.autocast(mask_features.device.type, enabled=False):
            # Each clip of each video is a problem, video by video: (D, L, B * clips, Q, .) and (B * clips, W, C, h, w).
            prediction = LayerPrediction(
                *(
                    at_least_float32(
                        torch.stack([torch.stack([layer[part] for layer in clip]) for clip in predictions], dim=3)
                    ).flatten(2, 3)
                    for part in range(2)
                )
            )
            mask_features = at_least_float32(mask_features).unflatten(1, (num_clips, -1)).flatten(0, 1)
            device = mask_features.device
            assignment = self._assign_labels(prediction, mask_features, targets, visible)
            objects, clips = targets.pairs(visible)
            num_objects = visible.sum(0).to(mask_features) * prediction.class_logits.shape[1]
            values = self._losses(
                prediction,
                mask_features,
                targets.select(objects, clips, num_clips, device),
                assignment[:, :, objects, clips].to(device),
                num_objects,
            )
            similarity = self._similarity(
                targets, clip_ids, assignment[-1].to(device), frame_matches, frame_similarity, video_similarity
            )
        losses = {f"loss_{self.name}_{kind}": value for kind, value in values.items()}
        return {**losses, f"loss_{self.name}_sim": self.similarity_weight * similarity.unsqueeze(0)}

    def _assign_labels(
        self, prediction: LayerPrediction, mask_features: torch.Tensor, targets: VideoTargets, visible: torch.Tensor
    ) -> torch.Tensor:
        """Assign each object a query from its first clip on: `(D, L, M, clips)` on the host, -1 before that clip."""
        num_clips = visible.shape[1]
        newcomers = visible & (visible.cumsum(dim=1) == 1)
        costs = self._costs(
            prediction, mask_features, targets.select(*targets.pairs(newcomers), num_clips, mask_features.device)
        )
        num_sets, num_layers = prediction.class_logits.shape[:2]
        assignments = []
        for video in range(targets.num_videos):
            clip_costs = [
                cost.reshape(num_sets * num_layers, *cost.shape[2:])
                for cost in costs[video * num_clips : (video + 1) * num_clips]
            ]
            video_visible = visible[targets.video_index == video].numpy()
            assignments.append(unified_video_label_assignment(clip_costs, video_visible, self.uvla, self.leave_surplus))
        history = np.concatenate(assignments, axis=2)  # (clips, D * L, M)
        return torch.from_numpy(history).permute(1, 2, 0).unflatten(0, (num_sets, num_layers))

    def _similarity(
        self,
        targets: VideoTargets,
        clip_ids: torch.Tensor,
        matched: torch.Tensor,
        frame_matches: torch.Tensor,
        frame_similarity: torch.Tensor,
        video_similarity: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Compute the similarity loss `(clips,)` of the matched frame queries and video queries within each clip."""
        num_layers, num_objects, num_clips = matched.shape
        device = matched.device
        video = targets.video_index.to(device)
        frame_similarity = at_least_float32(frame_similarity)
        video_similarity = at_least_float32(torch.stack(list(video_similarity), dim=2))  # (L, B, clips, Q, C)
        layer = torch.arange(num_layers, device=device)[:, None, None]
        frame = torch.arange(targets.num_frames, device=device)
        clip = torch.arange(num_clips, device=device)
        frame_entries = frame_similarity[layer, video[:, None], frame, frame_matches.clamp(min=0)]  # (L, M, T, C)
        video_entries = video_similarity[layer, video[:, None], clip, matched.clamp(min=0)]  # (L, M, clips, C)
        entries = torch.cat([frame_entries.unflatten(2, (num_clips, -1)), video_entries.unsqueeze(3)], dim=3)
        matches = torch.cat([frame_matches.unflatten(2, (num_clips, -1)), matched.unsqueeze(3)], dim=3)
        ids = torch.cat([clip_ids, clip_ids.amax(dim=2, keepdim=True)], dim=2).to(device)  # (M, clips, W + 1)
        ids = ids.where(matches != -1, -1)  # (L, M, clips, W + 1)

        counts = torch.bincount(targets.video_index, minlength=targets.num_videos)
        slot = (torch.arange(num_objects) - (counts.cumsum(0) - counts)[targets.video_index]).to(device)
        size = (targets.num_videos, int(counts.max()))
        padded_ids = ids.new_full((num_layers, *size, *ids.shape[2:]), -1)
        padded_ids[:, video, slot] = ids
        padded = entries.new_zeros(num_layers, *size, *entries.shape[2:])
        padded[:, video, slot] = entries
        losses, pairs = similarity_losses(
            padded.transpose(2, 3).flatten(3, 4), padded_ids.transpose(2, 3).flatten(3, 4)
        )  # (L, B, clips) each
        return losses.sum(dim=(0, 1)) / (average_over_ranks(pairs.sum(dim=(0, 1))) + 1e-6)


class ClipwiseMaskClassificationLoss(VideoMaskClassificationLoss):
    """GenVIS's losses: those of VITA in each clip, with labels assigned once for the whole video.

    An object is matched in the clip where it first appears and keeps its query, for every decoder layer separately
    (`unified_video_label_assignment`). In each clip visible objects are supervised; all other queries are no-object.

    Args:
        num_labels: Classes without no-object.
        name: Part of the keys of the losses, `loss_{name}_ce` and so on.
        uvla: Rule of the assignment, `"paper"` or `"released"`.
        kwargs: Other arguments of `VideoMaskClassificationLoss`.

    Raises:
        ValueError: `uvla` is unknown.

    Source: Heo et al., A Generalized Framework for Video Instance Segmentation, section 3.
    """

    def __init__(self, num_labels: int, name: str, uvla: str = "paper", **kwargs: Any) -> None:
        super().__init__(num_labels, name, **kwargs)
        check_choice("uvla", uvla, RULES)
        self.uvla = uvla

    def forward(
        self,
        predictions: Sequence[Sequence[LayerPrediction]],
        mask_features: torch.Tensor,
        targets: VideoTargets,
        frame_matches: torch.Tensor,
        frame_similarity: torch.Tensor,
        video_similarity: Sequence[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Compute the weighted losses of the clips of B videos, which are equal parts of the T frames.

        Args:
            predictions: Per clip and decoder layer class logits `(L, B, Q, K + 1)` and mask embeddings `(L, B, Q, C)`.
            mask_features: `(B, T, C, h, w)`.
            targets: M objects of the B videos.
            frame_matches: Frame query of each object in each frame, `(L, M, T)`, -1 where it has none.
            frame_similarity: Similarity embeddings of the frame queries, `(L, B, T, F, C)`.
            video_similarity: Per clip those of the video queries of the last decoder layer, `(L, B, Q, C)`.

        Returns:
            The scalars of `VideoMaskClassificationLoss` for each clip, with `_clip0`, `_clip1`, ... appended.

        Raises:
            ValueError: A video has more objects than queries (unless `leave_surplus`), a matching cost is not finite,
                or the frames are not a whole number of clips.
        """
        losses = self._clip_losses(
            predictions, mask_features, targets, frame_matches, frame_similarity, video_similarity
        )
        named = {}
        for clip in range(len(predictions)):
            named.update(name_losses({key: value[:, clip] for key, value in losses.items()}, suffix=f"_clip{clip}"))
        return named
