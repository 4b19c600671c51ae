# SPDX-License-Identifier: Apache-2.0
"""Compute YouTube-VIS average precision and recall with pycocotools' COCOeval.

COCOeval sees a video as an image and a track as an annotation. Two things differ: the IoU of two tracks is the sum of
intersections over the sum of unions of all frames (Yang et al. 2019, arXiv:1905.04804, eq. 1), also for crowds, and the
area of a track is the mean of its non-zero frame areas.
"""

import contextlib
import io
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import isqrt

import numpy as np
from pycocotools.cocoeval import COCOeval

from .. import rle
from .ground_truth import GroundTruth, check_results, mask_counts, read_results

AREA_RANGES = {"all": [0, 1e10], "small": [0, 128**2], "medium": [128**2, 256**2], "large": [256**2, 1e10]}
MAX_DETECTIONS = [1, 10, 100]  # per video and category
PAIRS_AT_ONCE = 50_000  # pairs of masks in one call of pycocotools
# name -> (array of COCOeval, IoU threshold or None for all, area range, number of detections)
STATISTICS = {
    "AP": ("precision", None, "all", 100),
    "AP50": ("precision", 0.5, "all", 100),
    "AP75": ("precision", 0.75, "all", 100),
    "AP_small": ("precision", None, "small", 100),
    "AP_medium": ("precision", None, "medium", 100),
    "AP_large": ("precision", None, "large", 100),
    "AR1": ("recall", None, "all", 1),
    "AR10": ("recall", None, "all", 10),
    "AR100": ("recall", None, "all", 100),
    "AR_small": ("recall", None, "small", 100),
    "AR_medium": ("recall", None, "medium", 100),
    "AR_large": ("recall", None, "large", 100),
}


@dataclass
class EvaluationResult:
    """Video AP and AR in 0..1; -1 where the ground truth has no object.

    Attributes:
        summary (`dict[str, float]`): the 12 numbers of YouTube-VIS: AP, AP50, AP75, AP_small, AP_medium, AP_large, AR1,
            AR10, AR100, AR_small, AR_medium, AR_large.
        per_category (`dict[int, dict[str, float]]`): the same 12 by category id.
        categories (`dict[int, str]`): name by category id.
        precision (`np.ndarray` of shape `(10, 101, categories, 4, 3)`): precision by IoU threshold, recall threshold,
            category in order of ids, area range and detection limit, as COCOeval returns it.
        recall (`np.ndarray` of shape `(10, categories, 4, 3)`): recall by IoU threshold, category, area range and
            detection limit.
        ious (`dict[tuple[int, int], np.ndarray]`): IoUs by (video id, category id) for pairs with tracks and
            annotations, of shape `(tracks, annotations)`: at most 100 tracks by falling score, annotations in the order
            of the file.
    """

    summary: dict[str, float]
    per_category: dict[int, dict[str, float]]
    categories: dict[int, str]
    precision: np.ndarray = field(repr=False)
    recall: np.ndarray = field(repr=False)
    ious: dict[tuple[int, int], np.ndarray] = field(repr=False)

    def summarize(self, category_ids: Iterable[int]) -> dict[str, float]:
        """Return the 12 numbers over some categories, for example those of one task, without another evaluation."""
        rows = [sorted(self.categories).index(category_id) for category_id in category_ids]
        return _statistics(self.precision[:, :, rows], self.recall[:, rows])

    def __str__(self) -> str:
        width = max(len(name) for name in [*self.categories.values(), "category"])
        lines = [f"{name:<{width}}  {'AP':>6}  {'AP50':>6}  {'AP75':>6}  {'AR10':>6}" for name in ["category"]]
        rows = [(self.categories[number], values) for number, values in self.per_category.items()]
        for name, values in [*rows, ("mean", self.summary)]:
            numbers = (
                f"{values[key]:6.3f}" if values[key] > -1 else f"{'-':>6}" for key in ("AP", "AP50", "AP75", "AR10")
            )
            lines.append(f"{name:<{width}}  {'  '.join(numbers)}")
        return "\n".join([*lines, "", *(f"{name:<10} {value:.4f}" for name, value in self.summary.items())])


def evaluate_ytvis(
    ground_truth: GroundTruth | dict | str | os.PathLike, results: list[dict] | dict | str | os.PathLike
) -> EvaluationResult:
    """Compute video AP and AR of results against a ground truth in YouTube-VIS or OVIS format.

    Masks are read one video at a time and are not decoded to pixels.

    Args:
        ground_truth: content of the json or its path. `areas` of an annotation are used if they are given.
        results: list of tracks `{"video_id", "category_id", "score", "segmentations"}` with one RLE or None per frame;
            or an object with this list as `annotations`, the `categories` of the ids, and optionally the `videos`,
            which are compared with those of the ground truth; or the path of either.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: the ground truth has no annotations; an id is missing, used twice or unknown; category names or
            videos differ; or a track has another number of frames or masks of another size than its video. The message
            names the entry.
    """
    ground_truth = GroundTruth.read(ground_truth)
    ground_truth.check_annotations()
    results = read_results(results, ground_truth)
    check_results(results, ground_truth)

    evaluation = _VideoEvaluation(ground_truth, results)
    with contextlib.redirect_stdout(io.StringIO()):  # COCOeval prints its progress
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    category_ids = sorted(ground_truth.categories)
    return EvaluationResult(
        summary=_statistics(precision, recall),
        per_category={
            category_id: _statistics(precision[:, :, [row]], recall[:, [row]])
            for row, category_id in enumerate(category_ids)
        },
        categories=ground_truth.categories,
        precision=precision,
        recall=recall,
        ious={pair: ious for pair, ious in evaluation.ious.items() if len(ious) and ious.size},
    )


class _VideoEvaluation(COCOeval):
    """COCOeval on videos in place of images, with the IoUs and areas of whole tracks."""

    def __init__(self, ground_truth: GroundTruth, results: list[dict]) -> None:
        super().__init__(iouType="segm")
        self.params.imgIds = sorted(ground_truth.videos)
        self.params.catIds = sorted(ground_truth.categories)
        self.params.areaRng = list(AREA_RANGES.values())
        self.params.areaRngLbl = list(AREA_RANGES)
        self.params.maxDets = list(MAX_DETECTIONS)
        self._ground_truth = ground_truth
        self._results = results
        self._track_ious: dict[tuple[int, int], np.ndarray] = {}

    def _prepare(self) -> None:
        """Collect ids, areas, scores and IoUs of the tracks by video and category, in the form that COCOeval uses."""
        annotations, tracks = defaultdict(list), defaultdict(list)
        for annotation in self._ground_truth.annotations:
            annotations[annotation["video_id"]].append((f"Ground truth: annotation {annotation['id']}", annotation))
        for position, track in enumerate(self._results):
            tracks[track["video_id"]].append((f"Results: track {position}", track))
        for video_id in self.params.imgIds:
            video = self._ground_truth.videos[video_id]
            best_first = sorted(tracks.pop(video_id, []), key=lambda named: -named[1]["score"])
            self._prepare_video(
                video_id, VideoTracks(annotations.pop(video_id, []), video), VideoTracks(best_first, video)
            )

    def _prepare_video(self, video_id: int, truths: "VideoTracks", found: "VideoTracks") -> None:
        """Collect the tracks of one video; `found` holds them by falling score."""
        # COCOeval takes id 0 for "no match", so the ids of both sides start at 1.
        for row, (annotation, area) in enumerate(zip(truths.tracks, truths.mean_areas(), strict=True)):
            if "areas" in annotation:
                visible = [frame_area for frame_area in annotation["areas"] if frame_area]
                area = sum(visible) / max(len(visible), 1)
            crowd = int(annotation.get("iscrowd", 0))
            entry = {"id": row + 1, "area": area, "iscrowd": crowd, "ignore": crowd}
            self._gts[video_id, annotation["category_id"]].append(entry)
        for row, (track, area) in enumerate(zip(found.tracks, found.mean_areas(), strict=True)):
            self._dts[video_id, track["category_id"]].append({"id": row + 1, "area": area, "score": track["score"]})
        found_rows, truth_rows = found.rows_of_category(), truths.rows_of_category()
        for category_id in found_rows.keys() & truth_rows.keys():
            rows = found_rows[category_id][: MAX_DETECTIONS[-1]]
            self._track_ious[video_id, category_id] = _track_ious(found, rows, truths, truth_rows[category_id])

    def computeIoU(self, imgId: int, catId: int) -> np.ndarray | list:  # noqa: N802, N803  (names of COCOeval)
        """Return the IoUs of the tracks of one video and category, `(found, truths)`; an empty list if none."""
        return self._track_ious.get((imgId, catId), [])

    def evaluateImg(self, imgId: int, catId: int, aRng: list[float], maxDet: int) -> dict | None:  # noqa: N802, N803
        """Match the tracks of one video and category; a category without annotations takes a shorter way."""
        if self._gts.get((imgId, catId)):
            return super().evaluateImg(imgId, catId, aRng, maxDet)
        # Most categories are not in a video. Without annotations, all found tracks are false positives.
        found = self._dts.get((imgId, catId), [])[:maxDet]
        if not found:
            return None
        areas = np.array([track["area"] for track in found])
        matches = np.zeros((len(self.params.iouThrs), len(found)))
        return {
            "dtScores": [track["score"] for track in found],
            "dtMatches": matches,
            "dtIgnore": np.logical_or(matches, (areas < aRng[0]) | (areas > aRng[1])),
            "gtIgnore": np.zeros(0),
        }


class VideoTracks:
    """Masks of some tracks of one video, and their areas of shape `(tracks, frames)` in pixels.

    The masks of each frame get a different nominal width. pycocotools compares widths before it reads run lengths, so
    masks of many frames can go into one call, in which pairs from different frames cost almost nothing.
    """

    def __init__(self, named_tracks: list[tuple[str, dict]], video: dict) -> None:
        self.tracks = [track for _, track in named_tracks]
        sizes = [[video["height"], frame] for frame in range(1, video["length"] + 1)]
        self.masks: list[list[dict]] = []  # by track, then by frame
        for name, track in named_tracks:
            counts = mask_counts(track, (video["height"], video["width"]), name)
            self.masks.append([{"size": size, "counts": runs} for size, runs in zip(sizes, counts, strict=True)])
        flat = self.of_frames(range(len(self.masks)), range(video["length"]))
        self.areas = rle.areas(flat).astype(np.float64).reshape(len(self.masks), video["length"])

    def of_frames(self, rows: Iterable[int], frames: Sequence[int]) -> list[dict]:
        """Return the masks of some tracks in some frames, track by track."""
        return [self.masks[row][frame] for row in rows for frame in frames]

    def mean_areas(self) -> list[float]:
        """Return for each track the mean of its non-zero frame areas, 0 if all are zero."""
        visible = np.count_nonzero(self.areas, axis=1)
        return (self.areas.sum(axis=1) / np.maximum(visible, 1)).tolist()

    def rows_of_category(self) -> dict[int, list[int]]:
        """Return the numbers of the tracks of each category."""
        rows = defaultdict(list)
        for row, track in enumerate(self.tracks):
            rows[track["category_id"]].append(row)
        return rows


def _track_ious(found: VideoTracks, found_rows: list[int], truths: VideoTracks, truth_rows: list[int]) -> np.ndarray:
    """Compute the IoU over all frames of each pair, float64 of shape `(found, truths)`.

    pycocotools returns the ratio intersection / union of two masks of a frame. With both areas a and b known, the
    intersection, a whole number, follows exactly: ratio * (a + b) / (1 + ratio).
    """
    found_areas, truth_areas = found.areas[found_rows], truths.areas[truth_rows]
    num_found, num_truths = len(found_rows), len(truth_rows)
    shared_frames = np.flatnonzero(found_areas.any(axis=0) & truth_areas.any(axis=0)).tolist()
    frames_at_once = max(1, isqrt(PAIRS_AT_ONCE // (num_found * num_truths)))
    intersections = np.zeros((num_found, num_truths))
    for start in range(0, len(shared_frames), frames_at_once):
        frames = shared_frames[start : start + frames_at_once]
        length = len(frames)
        masks = found.of_frames(found_rows, frames), truths.of_frames(truth_rows, frames)
        ratio = rle.ious(*masks)  # (found * frames, truths * frames)
        ratio = ratio.reshape(num_found, length, num_truths, length).diagonal(axis1=1, axis2=3)
        areas = found_areas[:, None, frames] + truth_areas[:, frames]  # (found, truths, frames)
        intersections += np.rint(ratio * areas / (1 + ratio)).sum(axis=-1)
    unions = found_areas.sum(axis=1)[:, None] + truth_areas.sum(axis=1) - intersections
    return intersections / np.maximum(unions, 1)


def _statistics(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """Compute the 12 numbers as means over all entries with ground truth, -1 if there is none."""
    thresholds = np.linspace(0.5, 0.95, 10)
    areas = list(AREA_RANGES)
    statistics = {}
    for name, (array, threshold, area, detections) in STATISTICS.items():
        values = (precision if array == "precision" else recall)[
            ..., areas.index(area), MAX_DETECTIONS.index(detections)
        ]
        if threshold is not None:
            values = values[np.isclose(thresholds, threshold)]
        values = values[values > -1]
        statistics[name] = float(values.mean()) if values.size else -1.0
    return statistics
