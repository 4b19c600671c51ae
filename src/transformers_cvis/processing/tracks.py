# SPDX-License-Identifier: Apache-2.0
"""Tracks of a video, gathered from the class and mask logits that a network gives clip by clip."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .. import rle
from ..messages import check_at_least, check_choice
from ..precision import at_least_float32
from .masks import ClipMasks, covered_share, segment_masks

SCORE_RULES = ("max_times_quality", "mean_logits")
DEFAULT_SCORE_RULE = SCORE_RULES[0]
DUPLICATE_SHARE = 0.5


@dataclass(repr=False)
class Track:
    """One object of a video.

    Attributes:
        score (`float`): confidence in 0..1, computed by the `score_rule` of [`TrackAccumulator`].
        label_id (`int`): index of the class, a key of the model's `id2label`.
        label (`str`): name of the class.
        query_id (`int`): query of the model that follows the object; the same in all clips of a video.
        segmentations (`list[dict | None]`): for each frame the mask as a compressed COCO RLE
            (`{"size": [height, width], "counts": str}`), or `None` where the object is absent.
        boxes (`list[tuple[float, float, float, float] | None]`): for each frame the tight box `(x0, y0, x1, y1)` in
            pixels, right and bottom exclusive, or `None` where the object is absent.
    """

    score: float
    label_id: int
    label: str
    query_id: int
    segmentations: list[dict | None]
    boxes: list[tuple[float, float, float, float] | None]

    @property
    def num_frames_visible(self) -> int:
        """Number of frames in which the object has a mask."""
        return sum(segmentation is not None for segmentation in self.segmentations)

    def __repr__(self) -> str:
        return (
            f"Track(label={self.label!r}, score={self.score:.3f}, query_id={self.query_id}, "
            f"visible in {self.num_frames_visible} of {len(self.segmentations)} frames)"
        )


class TrackAccumulator:
    """Accumulator of the outputs of a video's clips, from which it selects tracks. It keeps run lengths, no pixels.

    Class probabilities leave out the no-object class. A (query, label) pair is scored by one of two rules:

    - `"max_times_quality"` (VITA, GenVIS, HVPL): the largest class probability over the clips times the mask quality,
      the mean probability of the pixels that are on, over all frames, at network-input resolution without padding
      (`sum(p * [p > 0.5]) / (sum([p > 0.5]) + 1e-6)`).
    - `"mean_logits"` (MinVIS, SPVIS, Mask2Former-VIS, CRISP): the class probability of the logits averaged over the
      frames.

    A model states its rule as `score_rule` of its outputs. Two selections turn pairs into tracks:

    - Without a threshold, as benchmarks evaluate: the `top_k` pairs of largest class probability, whatever their
      masks. A query may appear with several labels.
    - With a `threshold`, for display: each query with its best label, if the score reaches the threshold. A track is
      dropped if more than half of its pixels belong to a better one, since objects share no pixels. A query is
      recorded from the first clip in which its class probability, in the clip or in the video so far, reaches the
      threshold. Until then its masks are not computed.

    Args:
        original_size (`tuple[int, int]`): height and width of the tracks' masks, usually those of the video's frames,
            in pixels.
        input_size (`tuple[int, int]`): height and width of the network input without padding.
        id2label (`dict[int, str]`, *optional*): names of the classes; their numbers by default.
        threshold (`float`, *optional*): least score of a track, in 0..1.
        top_k (`int`, *optional*): largest number of tracks.
        score_rule (`str`, *optional*): one of the rules above; by default the rule that the first output states, and
            `"max_times_quality"` if it states none.

    Raises:
        ValueError: neither `threshold` nor `top_k` is given, or an argument is out of range.
    """

    def __init__(
        self,
        original_size: tuple[int, int],
        input_size: tuple[int, int],
        id2label: dict[int, str] | None = None,
        threshold: float | None = None,
        top_k: int | None = None,
        score_rule: str | None = None,
    ) -> None:
        if threshold is None and top_k is None:
            raise ValueError("Give a `threshold`, `top_k` or both: otherwise every query would become a track.")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"`threshold` is a score in 0..1, got {threshold}.")
        if top_k is not None:
            check_at_least("top_k", top_k, 1)
        if score_rule is not None:
            check_choice("score_rule", score_rule, SCORE_RULES)
        self.original_size = original_size
        self.input_size = input_size
        self.id2label = id2label
        self.threshold = threshold
        self.top_k = top_k
        self.score_rule = score_rule
        self.num_frames = 0
        self._class_scores: torch.Tensor | None = None  # (num_queries, num_labels), of all clips so far
        self._logits_sum: torch.Tensor | None = None  # (num_queries, num_labels + 1), over the frames so far
        self._probability_sum = np.zeros(0)  # (num_queries,)
        self._pixel_count = np.zeros(0)  # (num_queries,)
        self._segmentations: list[list[dict | None]] = []  # [query][frame]

    def update(
        self, class_queries_logits: torch.Tensor, masks_queries_logits: torch.Tensor, score_rule: str | None = None
    ) -> None:
        """Add the next clip.

        Args:
            class_queries_logits (`torch.Tensor` of shape `(num_queries, num_labels + 1)`): no-object last.
            masks_queries_logits (`torch.Tensor` of shape `(num_queries, num_frames, height / 4, width / 4)`): for the
                frames of this clip, at a quarter of the padded network input.
            score_rule (`str`, *optional*): the rule that the model states for this output. The first clip decides,
                unless the accumulator was given a rule.

        Raises:
            ValueError: the rule is unknown, the number of classes is not that of `id2label`, or the logits cover less
                than the network input.
        """
        clip = self._see(class_queries_logits, masks_queries_logits, score_rule)
        num_frames = masks_queries_logits.shape[1]
        if not self._segmentations:
            self._segmentations = [[] for _ in range(len(masks_queries_logits))]
        for recorded, segmentations in zip(self._segmentations, clip, strict=True):
            recorded.extend(segmentations if segmentations is not None else [None] * num_frames)

    def step(
        self, class_queries_logits: torch.Tensor, masks_queries_logits: torch.Tensor, score_rule: str | None = None
    ) -> list[Track]:
        """Return the tracks of the next clip alone, scored by all clips so far, and keep nothing that grows.

        Args and errors are those of [`TrackAccumulator.update`].
        """
        clip = self._see(class_queries_logits, masks_queries_logits, score_rule)
        return self._select([segmentations or [None] * masks_queries_logits.shape[1] for segmentations in clip])

    def tracks(self) -> list[Track]:
        """Return the tracks of all clips that were added by [`TrackAccumulator.update`], best first.

        Raises:
            ValueError: no clip was added.
        """
        if self._class_scores is None:
            raise ValueError("No tracks before the first clip: call `update` first.")
        return self._select(self._segmentations)

    def _see(
        self, class_queries_logits: torch.Tensor, masks_queries_logits: torch.Tensor, score_rule: str | None
    ) -> list[list[dict | None] | None]:
        """Update scores and qualities.

        Returns:
            The clip's segmentations for each query, `None` for a query below the threshold.
        """
        if self.score_rule is None:
            self.score_rule = score_rule or DEFAULT_SCORE_RULE
            check_choice("score_rule", self.score_rule, SCORE_RULES)
        logits = class_queries_logits.detach().cpu()
        logits = at_least_float32(logits)
        scores = logits.softmax(dim=-1)[:, :-1]
        if self._class_scores is None:
            self._class_scores = scores
            self._logits_sum = torch.zeros_like(logits)
            self._probability_sum = np.zeros(len(scores))
            self._pixel_count = np.zeros(len(scores))
            if self.id2label is not None and len(self.id2label) != scores.shape[1]:
                raise ValueError(
                    f"The outputs have {scores.shape[1]} classes, but `id2label` names {len(self.id2label)}."
                )
        num_frames = masks_queries_logits.shape[1]
        self.num_frames += num_frames
        if self.score_rule == "mean_logits":
            self._logits_sum += num_frames * logits
            self._class_scores = (self._logits_sum / self.num_frames).softmax(dim=-1)[:, :-1]
        else:
            self._class_scores = torch.maximum(self._class_scores, scores)

        queries = torch.arange(len(scores))
        if self.threshold is not None:
            queries = (torch.maximum(self._class_scores, scores).amax(dim=1) >= self.threshold).nonzero()[:, 0]
        masks: ClipMasks = segment_masks(
            masks_queries_logits[queries.to(masks_queries_logits.device)], self.input_size, self.original_size
        )
        self._probability_sum[queries.numpy()] += masks.probability_sum
        self._pixel_count[queries.numpy()] += masks.pixel_count
        segmentations: list[list[dict | None] | None] = [None] * len(scores)
        for query, recorded in zip(queries.tolist(), masks.segmentations, strict=True):
            segmentations[query] = recorded
        return segmentations

    def _select(self, segmentations: list[list[dict | None]]) -> list[Track]:
        class_scores = self._class_scores
        num_labels = class_scores.shape[1]
        quality = np.ones(len(class_scores))  # (num_queries,)
        if self.score_rule == "max_times_quality":
            quality = self._probability_sum / (self._pixel_count + 1e-6)
        if self.threshold is not None:
            best = class_scores.argmax(dim=1)
            pairs = torch.arange(len(class_scores)) * num_labels + best
        else:
            pairs = torch.arange(class_scores.numel())
        if self.top_k is not None and self.top_k < len(pairs):
            pairs = pairs[class_scores.flatten()[pairs].topk(self.top_k).indices]

        tracks = []
        for pair in pairs.tolist():
            query, label_id = divmod(pair, num_labels)
            score = float(class_scores[query, label_id]) * float(quality[query])
            if self.threshold is not None and (score < self.threshold or not any(segmentations[query])):
                continue
            tracks.append(
                Track(
                    score=score,
                    label_id=label_id,
                    label=self.id2label[label_id] if self.id2label is not None else str(label_id),
                    query_id=query,
                    segmentations=list(segmentations[query]),
                    boxes=rle.corner_boxes(segmentations[query]),
                )
            )
        tracks.sort(key=lambda track: -track.score)
        return tracks if self.threshold is None else _without_duplicates(tracks)


def clip_predictions(output: Any, video: int = 0) -> tuple[torch.Tensor, torch.Tensor, str | None]:
    """Return the arguments of [`TrackAccumulator.update`] for one video of a model's output.

    Args:
        output: output of a model for a batch of clips; `score_rule` may be missing.
        video (`int`, defaults to 0): number of the video in the batch.
    """
    rule = getattr(output, "score_rule", None)
    return output.class_queries_logits[video], output.masks_queries_logits[video], rule


def _without_duplicates(tracks: list[Track]) -> list[Track]:
    """Drop each of `tracks`, given best first, if a better one covers more than `DUPLICATE_SHARE` of it."""
    kept: list[Track] = []
    for track in tracks:
        if all(covered_share(track.segmentations, other.segmentations) <= DUPLICATE_SHARE for other in kept):
            kept.append(track)
    return kept
