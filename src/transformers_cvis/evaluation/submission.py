# SPDX-License-Identifier: Apache-2.0
"""Results as the zip that the servers of YouTube-VIS and OVIS take."""

import json
import os
import zipfile

from .. import rle
from ..files import complete_file
from ..ytvis_json import track_result
from .ground_truth import GroundTruth, check_results, mask_counts, read_results


def write_submission(
    results: list[dict] | dict | str | os.PathLike,
    ground_truth: GroundTruth | dict | str | os.PathLike,
    path: str | os.PathLike,
) -> None:
    """Check results against the json of the videos and write them as `results.json` into a zip.

    Absent frames are written as empty masks, every mask as compressed RLE text. The zip appears when it is complete.

    Args:
        results: As for [`evaluate_ytvis`].
        ground_truth: The json of the split, annotations not needed, or its path.
        path: Where the zip is written.

    Raises:
        ValueError: a track whose video, category, number of frames, mask sizes or score do not fit; nothing is written.
        OSError: the zip cannot be written.
    """
    ground_truth = GroundTruth.read(ground_truth)
    results = read_results(results, ground_truth)
    check_results(results, ground_truth)
    rows = []
    for position, track in enumerate(results):
        size = ground_truth.size(track["video_id"])
        counts = mask_counts(track, size, f"Results: track {position}")
        masks = [rle.compress({"size": size, "counts": runs}, size) for runs in counts]
        rows.append(track_result(track["video_id"], track["category_id"], track["score"], masks, size))
    with complete_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("results.json", json.dumps(rows))
