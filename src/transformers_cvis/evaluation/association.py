# SPDX-License-Identifier: Apache-2.0
"""Measure how well tracks keep to their objects: association accuracy and IDF1, regardless of classes and scores."""

import os
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from .. import rle
from .ground_truth import GroundTruth, check_results, read_results
from .video_ap import VideoTracks


@dataclass
class AssociationResult:
    """Numbers over all videos together. All but `switches` are in 0..1.

    Attributes:
        association_accuracy (`float`): agreement of the tracks of found masks with their objects, AssA of HOTA at one
            IoU threshold (Luiten et al., "HOTA", IJCV 2021, section 3.2). A found mask of object o in track p counts
            `a / (a + b + c)`: p finds o in a frames, o has b further frames, and p has c further frames. 0 if no mask
            is found.
        detection_accuracy (`float`): found masks divided by found, missed and false masks, DetA of HOTA.
        idf1 (`float`): F1 of masks under the best one-to-one assignment of tracks to objects over the whole video
            (Ristani et al., "Performance Measures and a Data Set for Multi-Target, Multi-Camera Tracking", 2016).
        switches (`int`): number of times that an object is found by another track than before.
    """

    association_accuracy: float
    detection_accuracy: float
    idf1: float
    switches: int


def evaluate_association(
    ground_truth: GroundTruth | dict | str | os.PathLike,
    results: list[dict] | dict | str | os.PathLike,
    iou_threshold: float = 0.5,
) -> AssociationResult:
    """Compare tracks with the annotated tracks frame by frame.

    In each frame, tracks and objects are assigned one to one so that the total IoU of the pairs is largest. A pair with
    an IoU of at least `iou_threshold` is a found mask. All tracks count, so give those that would be shown
    (`predict_dataset(..., threshold=0.3, top_k=None)`), not a fixed number with several labels for one query. Crowd
    annotations are ignored, and masks that cover them count as false.

    Args:
        ground_truth: annotated videos, as for [`evaluate_ytvis`].
        results: tracks, as for [`evaluate_ytvis`].
        iou_threshold: smallest IoU of a found mask, in (0, 1].

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: the threshold is out of range, or the ground truth and the results do not fit, see
            [`evaluate_ytvis`].
    """
    if not 0 < iou_threshold <= 1:
        raise ValueError(f"`iou_threshold` must be in (0, 1], got {iou_threshold}.")
    ground_truth = GroundTruth.read(ground_truth)
    ground_truth.check_annotations()
    results = read_results(results, ground_truth)
    check_results(results, ground_truth)
    objects, tracks = defaultdict(list), defaultdict(list)
    for annotation in ground_truth.annotations:
        if not annotation.get("iscrowd"):
            objects[annotation["video_id"]].append((f"Ground truth: annotation {annotation['id']}", annotation))
    for position, track in enumerate(results):
        tracks[track["video_id"]].append((f"Results: track {position}", track))

    num_objects = num_tracked = num_found = num_identified = switches = 0
    agreement = 0.0
    for video_id, video in ground_truth.videos.items():
        video_objects, video_tracks = VideoTracks(objects[video_id], video), VideoTracks(tracks[video_id], video)
        visible, tracked = video_objects.areas > 0, video_tracks.areas > 0  # (objects or tracks, frames)
        ious = _frame_ious(video_objects, video_tracks, video["length"])  # (frames, objects, tracks)
        found = _found(ious, iou_threshold)  # (frames, objects, tracks) bool

        shared = found.sum(axis=0)  # (objects, tracks): frames in which a track finds an object
        union = visible.sum(axis=1)[:, None] + tracked.sum(axis=1) - shared
        agreement += (shared * shared / np.maximum(union, 1)).sum()
        num_found += shared.sum()
        num_objects += visible.sum()
        num_tracked += tracked.sum()
        overlap = (ious >= iou_threshold).sum(axis=0)
        num_identified += overlap[linear_sum_assignment(overlap, maximize=True)].sum()
        for frames_of_object in found.swapaxes(0, 1):
            holders = frames_of_object.nonzero()[1]  # the track in each frame that finds the object
            switches += int(np.count_nonzero(np.diff(holders)))
    return AssociationResult(
        association_accuracy=float(agreement / max(num_found, 1)),
        detection_accuracy=float(num_found / max(num_objects + num_tracked - num_found, 1)),
        idf1=float(2 * num_identified / max(num_objects + num_tracked, 1)),
        switches=switches,
    )


def _frame_ious(objects: VideoTracks, tracks: VideoTracks, num_frames: int) -> np.ndarray:
    """Compute the IoU of all masks of each frame, float64 of shape `(frames, objects, tracks)`."""
    object_rows, track_rows = range(len(objects.masks)), range(len(tracks.masks))
    ious = np.zeros((num_frames, len(object_rows), len(track_rows)))
    for frame in range(num_frames):
        ious[frame] = rle.ious(objects.of_frames(object_rows, [frame]), tracks.of_frames(track_rows, [frame]))
    return ious


def _found(ious: np.ndarray, threshold: float) -> np.ndarray:
    """Assign tracks to objects one to one in each frame; return the found pairs, bool `(frames, objects, tracks)`."""
    found = np.zeros(ious.shape, dtype=bool)
    for frame, similarity in enumerate(ious):
        rows, columns = linear_sum_assignment(similarity, maximize=True)
        found[frame, rows, columns] = similarity[rows, columns] >= threshold
    return found
