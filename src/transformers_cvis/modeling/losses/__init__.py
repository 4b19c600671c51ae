# SPDX-License-Identifier: Apache-2.0
"""Matching and losses of all systems.

Frame level (the frame detector)::

    criterion = MaskClassificationLoss(num_labels)
    losses, matched_queries = criterion(predictions, mask_features, frame_labels)
    matched_queries = criterion.match(predictions[-3:], mask_features, frame_labels)  # a frozen detector: no losses

`predictions` is a sequence of `LayerPrediction(class_logits (N, Q, K + 1), mask_embeddings (N, Q, C))` of `outputs`,
oldest first, `mask_features` is `(N, C, h, w)`, `frame_labels` is a list of N dicts
`{"class_labels": (M,), "masks": (M, H, W)}`. `losses` holds weighted scalars: `loss_ce`, `loss_mask`, `loss_dice` of
the last prediction, `loss_ce_0` ... of the earlier ones. `matched_queries` is `(predictions, targets)`: the query of
each target, targets concatenated image after image.

Video level (VITA: the frames of a sample are one clip)::

    targets = VideoTargets.from_labels(labels, num_labels)                # labels of a model's forward
    frame_labels = targets.frame_labels()                                 # B * T images, video after video
    frame_matches = targets.frame_matches(matched_queries[-num_layers:])  # (L, targets, T), -1 where absent
    criterion = VideoMaskClassificationLoss(num_labels, name="vita")
    losses = criterion(predictions, mask_features, targets, frame_matches, frame_similarity, video_similarity)

with `predictions` one `LayerPrediction((L, B, Q, K + 1), (L, B, Q, C))` per video decoder layer, `mask_features`
`(B, T, C, h, w)`, `frame_similarity` `(L, B, T, F, C)` and `video_similarity` `(L, B, Q, C)`, the latter of the last
layer.

Clip by clip (GenVIS: labels are assigned once per video; the clips of a sample are scored together, after the last)::

    criterion = ClipwiseMaskClassificationLoss(num_labels, name="genvis", uvla="paper")
    losses = criterion(clip_predictions, mask_features, targets, frame_matches, frame_similarity, video_similarity)

with one list of `LayerPrediction` per clip, clips of equal length, and `video_similarity` one tensor per clip.

Tracks (SPVIS and DVIS: a query follows an object through the frames and has a mask embedding for each frame)::

    losses = FramewiseTrackLoss(num_labels, name="spvis")(predictions, mask_features, targets)
    losses = VideoTrackLoss(num_labels, name="spvis")(predictions, mask_features, targets)

with class logits `(B, T, Q, K + 1)` in the first and `(B, Q, K + 1)` in the second, mask embeddings `(B, T, Q, C)`.

Clips as one (Mask2Former-VIS, CRISP: a query reads all frames of a clip at once)::

    losses = ClipMaskClassificationLoss(num_labels)(predictions, mask_features, targets)

with class logits `(B, Q, K + 1)` and mask embeddings `(B, Q, C)`. The losses of `distillation` keep such a model close
to an older one while it learns new classes.

Every criterion has a `point_sampler`; replacing it fixes the points. Criteria derive from `MaskClassificationLoss`,
whose methods `_match`, `_costs`, `_losses`, `_query_losses` and `_mask_losses` are its interface to subclasses.
They share these letters, in addition to those of `modeling/__init__.py`:

==== ==================================================================================
D    predictions that are scored together: one of the learned queries, one of each layer
P    problems that are matched independently: images, or clips of videos
W    frames of one clip of a video
==== ==================================================================================
"""

from .clip import ClipMaskClassificationLoss
from .distillation import (
    IncrementalClipLoss,
    class_distillation_loss,
    mask_distillation_loss,
    pooled_distillation_loss,
    pseudo_labels,
)
from .mask_classification import MaskClassificationLoss
from .points import PointSampler, sample_points, select_uncertain_points
from .targets import VideoTargets
from .tracks import FramewiseTrackLoss, VideoTrackLoss
from .uvla import unified_video_label_assignment
from .video import ClipwiseMaskClassificationLoss, VideoMaskClassificationLoss

__all__ = [
    "ClipMaskClassificationLoss",
    "ClipwiseMaskClassificationLoss",
    "FramewiseTrackLoss",
    "IncrementalClipLoss",
    "MaskClassificationLoss",
    "PointSampler",
    "VideoMaskClassificationLoss",
    "VideoTargets",
    "VideoTrackLoss",
    "class_distillation_loss",
    "mask_distillation_loss",
    "pooled_distillation_loss",
    "pseudo_labels",
    "sample_points",
    "select_uncertain_points",
    "unified_video_label_assignment",
]
