# SPDX-License-Identifier: Apache-2.0
"""Losses of tracks, which follow an object with one query through all frames: by frame, or by whole video."""

from collections.abc import Sequence
from typing import Any

import torch

from ...precision import at_least_float32
from ..layers.mask_logits import frame_mask_logits
from ..outputs import LayerPrediction
from .mask_classification import MaskClassificationLoss, name_losses
from .targets import Targets, VideoTargets
from .uvla import unified_video_label_assignment


class TrackLoss(MaskClassificationLoss):
    """Base of the losses of tracks, which have a mask embedding for each frame.

    Args:
        num_labels: Classes without no-object.
        name: Part of the keys of the losses, `loss_{name}_ce` and so on.
        kwargs: Weights and points as in `MaskClassificationLoss`.
    """

    def __init__(self, num_labels: int, name: str, **kwargs: Any) -> None:
        super().__init__(num_labels, **kwargs)
        self.name = name

    def forward(
        self,
        predictions: Sequence[LayerPrediction],
        mask_features: torch.Tensor,
        targets: VideoTargets,
        guide: LayerPrediction | None = None,
    ) -> dict[str, torch.Tensor]:
        """Compute the weighted losses of B videos of T frames.

        Args:
            predictions: Per layer class logits and mask embeddings `(B, T, Q, C)`, oldest first. Class logits are
                `(B, T, Q, K + 1)` for losses by frame, `(B, Q, K + 1)` for those of whole videos.
            mask_features: `(B, T, C, h, w)`.
            targets: M objects of the B videos.
            guide: Predictions of the same tracks whose matches are used for all layers; None matches each layer.

        Returns:
            Scalars `loss_{name}_ce`, `_mask`, `_dice` of the last layer, `loss_{name}_ce_0`, ... of the others.

        Raises:
            ValueError: A video has more objects than queries, or a matching cost is not finite.
        """
        with torch.autocast(mask_features.device.type, enabled=False):
            values = self._layer_losses(predictions, at_least_float32(mask_features), targets, guide)
        return name_losses({f"loss_{self.name}_{kind}": value for kind, value in values.items()})

    def _layer_losses(
        self,
        predictions: Sequence[LayerPrediction],
        mask_features: torch.Tensor,
        targets: VideoTargets,
        guide: LayerPrediction | None,
    ) -> dict[str, torch.Tensor]:
        """Compute the weighted losses `(layers,)` of each kind; arguments are those of `forward`."""
        raise NotImplementedError


class FramewiseTrackLoss(TrackLoss):
    """DVIS's losses of an online tracker: every frame is an image, with all objects of the clip as its targets.

    An object is matched in the frame where it first appears, to a query that no earlier object has, and keeps it in all
    frames, including earlier ones. Where the object is absent its class is still the target, and its mask is empty.

    Source: Zhang et al., DVIS: Decoupled Video Instance Segmentation Framework, section 3.2.
    """

    def _layer_losses(
        self,
        predictions: Sequence[LayerPrediction],
        mask_features: torch.Tensor,
        targets: VideoTargets,
        guide: LayerPrediction | None,
    ) -> dict[str, torch.Tensor]:
        num_frames, device = mask_features.shape[1], mask_features.device
        prediction = self._frames(predictions)
        mask_features = mask_features.flatten(0, 1).unsqueeze(1)  # (B * T, 1, C, h, w)
        matched = self._match_tracks(
            prediction if guide is None else self._frames([guide]), mask_features, targets
        )  # (D or 1, M)
        objects, frames = targets.pairs(torch.ones_like(targets.ids, dtype=torch.bool))
        values = self._losses(
            prediction,
            mask_features,
            targets.select(objects, frames, num_frames, device),
            matched.to(device)[:, None, objects].expand(len(predictions), -1, -1),
            mask_features.new_tensor([len(objects)]),
        )
        return {kind: value.squeeze(1) for kind, value in values.items()}

    def _frames(self, predictions: Sequence[LayerPrediction]) -> LayerPrediction:
        """Turn frames into problems: `(D, 1, B * T, Q, .)`."""
        return LayerPrediction(
            *(at_least_float32(torch.stack(part)).flatten(1, 2).unsqueeze(1) for part in zip(*predictions, strict=True))
        )

    @torch.no_grad()
    def _match_tracks(
        self, prediction: LayerPrediction, mask_features: torch.Tensor, targets: VideoTargets
    ) -> torch.Tensor:
        """Match each object to a query `(D, M)`, on the host."""
        visible = targets.ids != -1
        newcomers = visible & (visible.cumsum(dim=1) == 1)
        num_frames = targets.num_frames
        costs = self._costs(
            prediction, mask_features, targets.select(*targets.pairs(newcomers), num_frames, mask_features.device)
        )
        matched = [
            unified_video_label_assignment(
                [cost.squeeze(1) for cost in costs[video * num_frames : (video + 1) * num_frames]],
                visible[targets.video_index == video].numpy(),
            )[-1]
            for video in range(targets.num_videos)
        ]
        return torch.cat([torch.from_numpy(match) for match in matched], dim=1)


class VideoTrackLoss(TrackLoss):
    """DVIS's losses of refined tracks: a track is compared with an object over all frames of the video.

    A track has one class and a mask embedding for each frame, so its logits are computed densely, layer after layer.
    Points are drawn in each frame; the released code stacks the frames to one image and draws as many points from it.

    Source: Zhang et al., DVIS: Decoupled Video Instance Segmentation Framework, section 3.3.
    """

    def _layer_losses(
        self,
        predictions: Sequence[LayerPrediction],
        mask_features: torch.Tensor,
        targets: VideoTargets,
        guide: LayerPrediction | None,
    ) -> dict[str, torch.Tensor]:
        everything = torch.ones(len(targets.ids), 1, dtype=torch.bool)
        videos = targets.select(*targets.pairs(everything), 1, mask_features.device)
        num_objects = mask_features.new_tensor([len(targets.ids)])
        matched = None if guide is None else self._match_video(guide, mask_features, videos)
        layers = []
        for layer in predictions:
            prediction, masks = self._video(layer, mask_features)
            match = self._match(prediction, masks, videos) if matched is None else matched
            layers.append(self._losses(prediction, masks, videos, match, num_objects))
        return {kind: torch.cat([layer[kind] for layer in layers]).squeeze(1) for kind in layers[0]}

    @torch.no_grad()
    def _match_video(self, guide: LayerPrediction, mask_features: torch.Tensor, videos: Targets) -> torch.Tensor:
        """Match each object to a query `(1, 1, M)` by the predictions of the guide."""
        return self._match(*self._video(guide, mask_features), videos)

    def _video(self, layer: LayerPrediction, mask_features: torch.Tensor) -> tuple[LayerPrediction, torch.Tensor]:
        """Turn a video into a problem: its mask logits are the features, and each query reads one channel."""
        class_logits, mask_embeddings = at_least_float32(layer.class_logits), at_least_float32(layer.mask_embeddings)
        masks = frame_mask_logits(mask_embeddings, mask_features)  # (B, T, Q, h, w)
        own = torch.eye(masks.shape[2], dtype=masks.dtype, device=masks.device).expand(1, 1, len(masks), -1, -1)
        return LayerPrediction(class_logits[None, None], own), masks
