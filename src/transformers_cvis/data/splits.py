# SPDX-License-Identifier: Apache-2.0
"""Split an annotated data set into a train part and a test part, for benchmarks whose test labels are hidden."""

import json
import os
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from ..files import sha256, write_json
from .annotation_files import read_annotations

PARTS = ("train", "test")


def split_annotations(content: dict, test_share: float = 0.2, seed: int = 0) -> tuple[dict, dict]:
    """Split a YouTube-VIS json by videos, with every class in both parts where possible.

    Videos are assigned one by one, those of the rarest class first, each to the part that lacks more videos of that
    class (iterative stratification, Sechidis et al., ECML 2011). The split depends only on the arguments.

    Args:
        content: content of an annotation file that has been checked. Crowd annotations do not count as objects of a
            class.
        test_share: share of the videos of each class that goes to the test part, at least one video of every class that
            two videos show.
        seed: seed of the order in which the videos of a class are assigned.

    Returns:
        The train part and the test part, both with all categories.

    Raises:
        ValueError: `test_share` is not between 0 and 1, or no video can be held out.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share is {test_share}; give a share of the videos between 0 and 1, for example 0.2.")
    test_videos = _draw_test_videos(content, test_share, np.random.default_rng(seed))
    if not test_videos:
        raise ValueError("No video can be held out, because every class is in one video only; add videos.")
    train, test = (
        {
            **content,
            "videos": [video for video in content["videos"] if (video["id"] in test_videos) == in_test],
            "annotations": [row for row in content["annotations"] if (row["video_id"] in test_videos) == in_test],
        }
        for in_test in (False, True)
    )
    return train, test


def split_ytvis(
    json_path: str | os.PathLike, output_dir: str | os.PathLike, test_share: float = 0.2, seed: int = 0
) -> tuple[Path, Path]:
    """Split an annotation file of YouTube-VIS format with [`split_annotations`].

    Args:
        json_path: path of the annotation file.
        output_dir: folder for `train_split.json` and `test_split.json`. Their `info` names the source: name and SHA-256
            of the annotation file, share, seed, and the ids of the videos of the part.
        test_share: share of the videos of each class that goes to the test part.
        seed: seed of the order in which the videos of a class are assigned.

    Returns:
        Paths of the train part and of the test part.

    Raises:
        FileNotFoundError: `json_path` does not exist.
        ValueError: the file breaks the format, `test_share` is not between 0 and 1, or no video can be held out.
    """
    content = read_annotations(json_path)
    try:
        parts = split_annotations(content, test_share, seed)
    except ValueError as error:
        raise ValueError(f"{json_path}: {error}") from error
    origin = _origin(json_path, test_share, seed)
    train, test = paths = _part_paths(output_dir)
    for name, part, path in zip(PARTS, parts, paths, strict=True):
        split = {"part": name, **origin, "video_ids": [video["id"] for video in part["videos"]]}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**part, "info": {**(content.get("info") or {}), "split": split}})
    return train, test


def is_split_of(
    output_dir: str | os.PathLike, json_path: str | os.PathLike, test_share: float = 0.2, seed: int = 0
) -> bool:
    """Check whether a folder holds the parts that [`split_ytvis`] makes of an annotation file in its present state.

    Args:
        output_dir: folder with the parts.
        json_path: path of the annotation file.
        test_share: share of the test part.
        seed: seed of the split.

    Raises:
        FileNotFoundError: the parts exist but `json_path` does not.
    """
    paths = _part_paths(output_dir)
    if not all(path.is_file() for path in paths):
        return False
    origin = _origin(json_path, test_share, seed)
    infos = [json.loads(path.read_text(encoding="utf-8")).get("info") or {} for path in paths]
    return all(origin.items() <= info.get("split", {}).items() for info in infos)


def _part_paths(output_dir: str | os.PathLike) -> list[Path]:
    """Return the paths of the train part and of the test part."""
    return [Path(output_dir) / f"{name}_split.json" for name in PARTS]


def _origin(json_path: str | os.PathLike, test_share: float, seed: int) -> dict:
    """Return the provenance of a split: source file, hash, share and seed."""
    return {
        "source": Path(json_path).name,
        "source_sha256": sha256(json_path),
        "test_share": test_share,
        "seed": seed,
    }


def _draw_test_videos(content: dict, test_share: float, rng: np.random.Generator) -> set[int]:
    """Choose the ids of the videos of the test part."""
    classes_of_video: dict[int, set[int | None]] = {video["id"]: set() for video in content["videos"]}
    for annotation in content.get("annotations") or []:
        if not annotation.get("iscrowd"):
            classes_of_video[annotation["video_id"]].add(annotation["category_id"])
    videos_of_class: dict[int | None, list[int]] = defaultdict(list)
    for video, classes in classes_of_video.items():
        # Videos without objects form a class of their own, None, so that both parts get their share of them.
        for category in classes or {None}:
            videos_of_class[category].append(video)
    wanted = {}  # class -> number of videos that the train and the test part still lack
    for category, videos in videos_of_class.items():
        in_test = max(test_share * len(videos), min(1.0, len(videos) - 1.0))
        wanted[category] = [len(videos) - in_test, in_test]
    remaining = Counter({category: len(videos) for category, videos in videos_of_class.items()})
    unassigned, test_videos = set(classes_of_video), set()
    while unassigned:
        category = min((c for c in remaining if remaining[c]), key=lambda c: (remaining[c], c is None, c or 0))
        candidates = [video for video in videos_of_class[category] if video in unassigned]
        for video in rng.permutation(candidates).tolist():
            lacking_in_train, lacking_in_test = wanted[category]
            is_test = lacking_in_test > lacking_in_train
            unassigned.remove(video)
            if is_test:
                test_videos.add(video)
            for shown in classes_of_video[video] or {None}:
                wanted[shown][is_test] -= 1
                remaining[shown] -= 1
    return test_videos
