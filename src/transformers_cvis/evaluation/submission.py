"""Results as the zip that the servers of YouTube-VIS and OVIS take."""

import json
import os
import zipfile

from ..files import complete_file
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
    rows = [
        {
            "video_id": track["video_id"],
            "category_id": track["category_id"],
            "score": track["score"],
            "segmentations": [
                {"size": list(size), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
                for size in [ground_truth.size(track["video_id"])]
                for counts in mask_counts(track, size, f"Results: track {position}")
            ],
        }
        for position, track in enumerate(results)
    ]
    with complete_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("results.json", json.dumps(rows))
