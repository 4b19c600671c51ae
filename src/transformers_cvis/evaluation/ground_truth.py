# SPDX-License-Identifier: Apache-2.0
"""Read ground truth and results in YouTube-VIS format, and check early that they belong together."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from .. import rle
from ..ytvis_json import (
    GROUND_TRUTH,
    RESULTS,
    annotation_messages,
    annotation_problems,
    category_problems,
    check_top_level,
    entry_message,
    entry_problems,
    holder_problems,
    mask_structure_message,
    read_json,
    reference_message,
    refuse,
    run_lengths_message,
    section_problems,
)


@dataclass
class GroundTruth:
    """A checked YouTube-VIS json.

    Attributes:
        videos (`dict[int, dict]`): video by id, with `width`, `height` (pixels) and `length` (frames).
        categories (`dict[int, str]`): name by category id.
        annotations (`list[dict]`): tracks with one mask (or None) per frame of their video; empty for a test split.
        name (`str`): the path of the file, for messages.
    """

    videos: dict[int, dict]
    categories: dict[int, str]
    annotations: list[dict]
    name: str = "The ground truth"

    @classmethod
    def read(cls, source: "GroundTruth | dict | str | os.PathLike") -> "GroundTruth":
        """Check the content of a json, or read it from its path. Annotations are not checked yet.

        Args:
            source: content of the json or its path. A `GroundTruth` is returned as it is.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the content breaks the YouTube-VIS format; the message names the entries.
        """
        if isinstance(source, GroundTruth):
            return source
        content: Any
        if isinstance(source, (str, os.PathLike)):
            content, name = read_json(source), str(source)
        else:
            content, name = source, cls.name
        check_top_level(content, name)
        refuse(section_problems(content, GROUND_TRUTH), name, GROUND_TRUTH)
        for problems in (
            category_problems(content["categories"], GROUND_TRUTH),
            holder_problems(content["videos"], GROUND_TRUTH),
        ):
            refuse(problems, name, GROUND_TRUTH)
        return cls(
            videos={video["id"]: video for video in content["videos"]},
            categories={category["id"]: category["name"] for category in content["categories"]},
            annotations=content.get("annotations") or [],
            name=name,
        )

    def size(self, video_id: int) -> tuple[int, int]:
        """Return the height and width of a video in pixels."""
        return self.videos[video_id]["height"], self.videos[video_id]["width"]

    def check_annotations(self) -> None:
        """Check that annotations exist and follow the format.

        Raises:
            ValueError: the ground truth has no annotations, or one of them has an unknown video or category, another
                number of frames than its video, or a mask of another size. The message names it.
        """
        if not self.annotations:
            raise ValueError(
                "The ground truth has no annotations to evaluate against. The published json of the validation and "
                "test videos comes without: write the results with `write_submission` and upload the zip to the data "
                "set's server, or evaluate on a split of the annotated videos."
            )
        problems = annotation_problems(self.annotations, self.videos, self.categories, GROUND_TRUTH)
        refuse(problems, self.name, GROUND_TRUTH)


def read_results(source: list | dict | str | os.PathLike, ground_truth: GroundTruth) -> list[dict]:
    """Read results as a list of tracks `{"video_id", "category_id", "score", "segmentations"}`.

    Args:
        source: a list of tracks, a json with `annotations` and `categories` (the names of the category ids), or the
            path of either. A json may also have `videos`, which are compared with those of the ground truth by `width`,
            `height`, `length` and `file_names`.
        ground_truth: the videos and categories that the results must fit.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the results have another form, or a category or video has another meaning in the ground truth.
    """
    content = read_json(source) if isinstance(source, (str, os.PathLike)) else source
    if isinstance(content, list):
        return content
    if not isinstance(content, dict) or not {"annotations", "categories"} <= content.keys():
        raise ValueError(
            "The results are neither a list of tracks nor an object with 'annotations' and 'categories'; "
            "give [{'video_id', 'category_id', 'score', 'segmentations'}, ...]."
        )
    for category in content["categories"]:
        expected = ground_truth.categories.get(category["id"])
        if expected != category["name"]:
            raise ValueError(
                f"Category {category['id']} is {category['name']!r} in the results but {expected!r} in the ground "
                "truth. Map the results' categories to the ground truth's ids by name before evaluating."
            )
    _check_same_videos(content.get("videos") or [], ground_truth)
    return content["annotations"]


def _check_same_videos(videos: list[dict], ground_truth: GroundTruth) -> None:
    """Refuse results whose video ids stand for other videos in the ground truth."""
    if problem := next(entry_problems(videos, "videos", RESULTS), None):
        raise ValueError(f"Results: {problem}")
    folders = {_folder(video) for video in ground_truth.videos.values()}
    for video in videos:
        expected = ground_truth.videos.get(video["id"])
        if expected is None:  # check_results refuses its tracks
            continue
        for key in ("length", "height", "width"):
            if key in video and video[key] != expected[key]:
                raise _other_video(video["id"], f"has {key} {video[key]}", f"has {expected[key]}")
        for found, wanted in zip(video.get("file_names") or [], expected.get("file_names") or [], strict=False):
            source, is_segmented, _ = found.rpartition("#")  # `transformers-cvis segment` writes source#number
            if is_segmented:
                # A source may have any name except that of another video of the ground truth.
                name = PurePath(source).stem
                differs = name != _folder(expected) and name in folders
            else:
                # The two paths may start at different folders and have different suffixes.
                differs = any(
                    ours != theirs for ours, theirs in zip(_backwards(found), _backwards(wanted), strict=False)
                )
            if differs:
                error = _other_video(video["id"], f"is {source or found!r}", f"is {wanted!r}")
                raise ValueError(f"{error} If they are the same videos, remove 'videos' from the results.")


def _folder(video: dict) -> str | None:
    """Return the name of the folder of a video's frames, None for a video without file names."""
    return next((PurePath(name).parent.name for name in video.get("file_names") or []), None)


def _backwards(name: str) -> tuple[str, ...]:
    """Return the parts of a path from its end: file name without suffix, folder, parent folder, ..."""
    path = PurePath(name)
    return (path.stem, *reversed(path.parent.parts))


def _other_video(video_id: int, found: str, expected: str) -> ValueError:
    """Build the error for a video id that stands for two videos."""
    return ValueError(
        f"Results: video {video_id} {found}, but the ground truth's video {video_id} {expected}. Segment the ground "
        "truth's own videos, all their frames and in the order of their ids, as `transformers-cvis evaluate --images` "
        "does."
    )


def check_results(results: Iterable[dict], ground_truth: GroundTruth) -> None:
    """Check ids, scores, numbers of frames and sizes of masks against the ground truth. Masks are not decoded.

    Args:
        results: tracks, see [`read_results`].
        ground_truth: the videos and categories that the results must fit.

    Raises:
        ValueError: a track does not fit; the message gives its position.
    """
    for position, track in enumerate(results):
        if message := entry_message(track, "annotations", RESULTS):
            raise ValueError(f"Results: track {position} {message}")
        message = reference_message(track, ground_truth.videos, ground_truth.categories, RESULTS)
        if message is None:
            message = next(annotation_messages(track, ground_truth.videos[track["video_id"]], RESULTS), None)
        if message is not None:
            raise ValueError(f"Results: track {position}, video {track['video_id']}: {message}")


def mask_counts(track: dict, size: tuple[int, int], where: str) -> list[str | bytes]:
    """Return the compressed run lengths of each frame of a track; a frame without mask gets those of an empty mask.

    Args:
        track: a track whose `segmentations` hold for each frame a compressed or uncompressed RLE, polygons, or None.
        size: height and width of the video in pixels.
        where: name of the track for messages.

    Raises:
        ValueError: a mask has another size or an unknown form.
    """
    expected = list(size)
    return [
        mask["counts"]
        if type(mask) is dict and mask.get("size") == expected and type(mask.get("counts")) in (str, bytes)
        else _counts_of_other_forms(mask, size, f"{where}, frame {frame}")
        for frame, mask in enumerate(track["segmentations"])
    ]


def _counts_of_other_forms(segmentation: Any, size: tuple[int, int], where: str) -> str:
    """Return the compressed run lengths of a mask that is not a compressed RLE of the right size.

    Raises:
        ValueError: the mask has another size or an unknown form.
    """
    message = mask_structure_message(segmentation, size, "video")
    if message is None and isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
        message = run_lengths_message(segmentation["counts"], size)
    if message is not None:
        raise ValueError(f"{where}: {message}")
    return rle.compress(segmentation, size)["counts"]
