# SPDX-License-Identifier: Apache-2.0
"""Video AP on a data set of the size of YouTube-VIS, against an evaluation of each pair, frame by frame.

300 videos of 30 frames (360x640), 40 categories, 10 annotated tracks per video; 100 found tracks per video in the row
`evaluate`, 10 in `evaluate_10_tracks`. Both sides run in COCOeval, start from parsed json, and read all run lengths.
The peer merges and measures the masks of each pair in each frame with pycocotools.
"""

import contextlib
import io
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from _harness import compare, main
from pycocotools import mask as mask_utils
from pycocotools.cocoeval import COCOeval

from transformers_cvis.evaluation import evaluate_ytvis
from transformers_cvis.evaluation.video_ap import AREA_RANGES

HEIGHT, WIDTH, NUM_FRAMES, NUM_CATEGORIES, NUM_ANNOTATED = 360, 640, 30, 40, 10


def rows(quick: bool) -> Iterator[dict]:
    num_videos = 20 if quick else 300
    for name, num_found in (("evaluate", 100), ("evaluate_10_tracks", 10)):
        ground_truth, results = data_set(num_videos, num_found, seed=0)
        ours, peer = evaluate_ytvis(ground_truth, results), straightforward(ground_truth, results)
        assert abs(ours.summary["AP"] - peer) < 1e-9, (ours.summary["AP"], peer)
        yield compare(
            name,
            ours=lambda g=ground_truth, r=results: evaluate_ytvis(g, r),
            peer=lambda g=ground_truth, r=results: straightforward(g, r),
            unit="s",
            repeats=3,
            warmup=0,
            note=f"{num_videos} videos, {NUM_FRAMES} frames, {NUM_CATEGORIES} categories, {num_found} tracks a video",
        )


def data_set(num_videos: int, num_found: int, seed: int) -> tuple[dict, list[dict]]:
    """Generate ground truth and results of moving blobs.

    The annotated tracks of a video have one to three categories, as in YouTube-VIS and OVIS. Six of ten found tracks
    follow an annotated one with some error; the others have any shape, place and category.
    """
    random = np.random.default_rng(seed)
    pool = [blob_track(random) for _ in range(60)]
    videos, annotations, results = [], [], []
    for video_id in range(1, num_videos + 1):
        videos.append({"id": video_id, "height": HEIGHT, "width": WIDTH, "length": NUM_FRAMES})
        present = random.integers(1, NUM_CATEGORIES + 1, size=random.integers(1, 4))
        annotated = [(random.integers(len(pool)), random.choice(present)) for _ in range(NUM_ANNOTATED)]
        for blob, category in annotated:
            track = {"video_id": video_id, "category_id": int(category), "segmentations": pool[blob][0]}
            annotations.append({"id": len(annotations) + 1, "iscrowd": 0, **track})
        for _ in range(num_found):
            blob, category = random.integers(len(pool)), random.integers(1, NUM_CATEGORIES + 1)
            if random.random() < 0.6:
                blob, category = annotated[random.integers(NUM_ANNOTATED)]
            variant = random.integers(1, len(pool[blob]))
            track = {"video_id": video_id, "category_id": int(category), "segmentations": pool[blob][variant]}
            results.append({"score": float(random.random()), **track})
    categories = [{"id": number, "name": f"category {number}"} for number in range(1, NUM_CATEGORIES + 1)]
    return {"videos": videos, "categories": categories, "annotations": annotations}, results


def blob_track(random: np.random.Generator) -> list[list[dict | None]]:
    """Generate the masks of a star-shaped blob that moves through the video, and of four inaccurate copies.

    The blob is visible in consecutive frames, two thirds of the video on average. In the other frames the annotation
    has None and the copies have empty masks, as the test servers expect.
    """
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radius = random.uniform(20, 110) * (
        1 + 0.15 * np.sin(angles * random.integers(2, 7)) + 0.05 * random.normal(size=48)
    )
    centre, speed = random.uniform((120, 80), (520, 280)), random.normal(size=2) * 4
    first, last = sorted(random.integers(0, NUM_FRAMES + 1, size=2))
    visible = range(NUM_FRAMES) if random.random() < 0.5 else range(first, last)
    absent = mask_utils.frPyObjects({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, HEIGHT, WIDTH)
    variants = []
    for error in (0.0, 0.05, 0.1, 0.2, 0.3):
        masks: list[dict | None] = []
        for frame in range(NUM_FRAMES):
            if frame not in visible:
                masks.append({"size": [HEIGHT, WIDTH], "counts": absent["counts"].decode()} if error else None)
                continue
            r = radius * (1 + error * random.normal()) * (1 + 0.1 * error * random.normal(size=48))
            x, y = centre + frame * speed + error * 20 * random.normal(size=2)
            polygon = np.stack((x + r * np.cos(angles), y + r * np.sin(angles)), axis=1)
            mask = mask_utils.frPyObjects([np.clip(polygon, 0, (WIDTH, HEIGHT)).ravel().tolist()], HEIGHT, WIDTH)[0]
            masks.append({"size": [HEIGHT, WIDTH], "counts": mask["counts"].decode()})
        variants.append(masks)
    return variants


def straightforward(ground_truth: dict, results: list[dict]) -> float:
    """Return the AP of an evaluation as it is usually written."""
    evaluation = StraightforwardEvaluation(ground_truth, results)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


class StraightforwardEvaluation(COCOeval):
    """Merge union and intersection of each pair in each frame with pycocotools, and sum their areas."""

    def __init__(self, ground_truth: dict, results: list[dict]) -> None:
        super().__init__(iouType="segm")
        self.params.imgIds = [video["id"] for video in ground_truth["videos"]]
        self.params.catIds = [category["id"] for category in ground_truth["categories"]]
        self.params.areaRng = list(AREA_RANGES.values())
        self.ground_truth, self.results = ground_truth, results

    def _prepare(self) -> None:
        self._gts, self._dts = defaultdict(list), defaultdict(list)
        for annotation in self.ground_truth["annotations"]:
            key = annotation["video_id"], annotation["category_id"]
            ignore = annotation["iscrowd"]
            self._gts[key].append({**annotation, "area": mean_area(annotation["segmentations"]), "ignore": ignore})
        for number, track in enumerate(self.results, start=1):
            key = track["video_id"], track["category_id"]
            self._dts[key].append({**track, "id": number, "area": mean_area(track["segmentations"])})

    def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802, N803  (COCOeval's name and arguments)
        annotated, found = self._gts[imgId, catId], self._dts[imgId, catId]
        if not annotated and not found:
            return []
        best = np.argsort([-track["score"] for track in found], kind="mergesort")[: self.params.maxDets[-1]]
        return np.array(
            [
                [track_iou(found[row]["segmentations"], annotation["segmentations"]) for annotation in annotated]
                for row in best
            ]
        ).reshape(len(best), len(annotated))


def track_iou(first: list[dict | None], second: list[dict | None]) -> float:
    intersection = union = 0
    for one, other in zip(first, second, strict=True):
        if one and other:
            intersection += int(mask_utils.area(mask_utils.merge([one, other], intersect=True)))
            union += int(mask_utils.area(mask_utils.merge([one, other], intersect=False)))
        elif one or other:
            union += int(mask_utils.area(one or other))
    return intersection / union if union else 0.0


def mean_area(segmentations: list[dict | None]) -> float:
    areas = [int(mask_utils.area(mask)) for mask in segmentations if mask]
    areas = [area for area in areas if area]
    return sum(areas) / len(areas) if areas else 0.0


if __name__ == "__main__":
    main("Video AP: one pass over a video's run lengths against merging each pair in each frame", rows)
