# SPDX-License-Identifier: Apache-2.0
"""Write results as the zip that the servers of YouTube-VIS and OVIS accept."""

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

    All masks are written as compressed RLE text, those of absent frames as empty masks. The zip appears only when it is
    complete.

    Args:
        results: tracks, as for [`evaluate_ytvis`].
        ground_truth: content of the json of the split or its path; annotations are not needed.
        path: path of the zip.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: the video, category, number of frames, mask size or score of a track does not fit; nothing is
            written.
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
