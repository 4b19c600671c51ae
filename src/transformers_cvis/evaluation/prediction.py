# SPDX-License-Identifier: Apache-2.0
"""Run a model on all videos of a data set."""

import os
from pathlib import Path

from ..logs import progress_bar
from ..processing import CvisVideoProcessor, VideoModel, segment_video, tracks_to_ytvis_json
from ..ytvis_json import file_names_messages
from .ground_truth import GroundTruth


def predict_dataset(
    model: VideoModel,
    video_processor: CvisVideoProcessor,
    ground_truth: GroundTruth | dict | str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    clip_length: int | None = None,
    threshold: float | None = None,
    top_k: int | None = 10,
    progress: bool = False,
) -> list[dict]:
    """Segment every video of a YouTube-VIS json; labels are matched to the category ids of the data set by name.

    Args:
        model: a video instance segmentation model.
        video_processor: the processor saved with the model.
        ground_truth: content of the json or its path; annotations are not needed.
        image_root: folder that the `file_names` of the videos are relative to.
        clip_length: frames per clip; None takes the model's own.
        threshold: smallest score of a track; None keeps the `top_k` best (class, query) pairs, as benchmarks do.
        top_k: largest number of tracks of a video; None keeps all above `threshold`.
        progress: show a progress bar over the videos.

    Returns:
        Tracks `{"video_id", "category_id", "score", "segmentations"}` for [`evaluate_ytvis`] and [`write_submission`].

    Raises:
        FileNotFoundError: a frame is missing.
        ValueError: a label of the model is not a category of the data set, or the frames have another size than the
            json gives.
    """
    ground_truth = GroundTruth.read(ground_truth)
    category_ids = {name: category_id for category_id, name in ground_truth.categories.items()}
    labels = sorted(model.config.id2label.values())
    if unknown := [label for label in labels if label not in category_ids]:
        raise ValueError(
            f"The model's labels {', '.join(map(repr, unknown))} are not categories of the data set, which has "
            f"{', '.join(map(repr, sorted(category_ids)))}. Classes are matched by name: evaluate on the data set "
            "that the model was trained for, or rename `model.config.id2label`."
        )
    results = []
    for video_id, video in progress_bar(ground_truth.videos.items(), desc="videos", unit="video", disable=not progress):
        frames = _frames(video, Path(image_root).expanduser())
        segmentation = segment_video(
            model, video_processor, frames, clip_length=clip_length, threshold=threshold, top_k=top_k
        )
        size = ground_truth.size(video_id)
        if tuple(segmentation.size) != size:
            raise ValueError(
                f"The frames of video {video_id} are {tuple(segmentation.size)} (height, width) but the json gives "
                f"{size}; make them agree."
            )
        results += tracks_to_ytvis_json(segmentation.tracks, video_id, size, category_ids)
    return results


def _frames(video: dict, image_root: Path) -> list[Path]:
    """Return the paths of the frames of a video, after checking that they exist."""
    if message := next(file_names_messages(video), None):
        raise ValueError(f"video {video['id']}: {message}")
    frames = [image_root / name for name in video["file_names"]]
    for frame in frames:
        if not frame.is_file():
            raise FileNotFoundError(
                f"Frame {str(frame)!r} of video {video['id']} is missing. Is {str(image_root)!r} the folder that the "
                "json's 'file_names' are relative to?"
            )
    return frames
