"""A train part and a test part of an annotated data set, for benchmarks whose own test labels are hidden."""

import json
import os
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from ..processing import complete_file
from .annotation_files import read_annotations


def split_ytvis(
    json_path: str | os.PathLike,
    output_dir: str | os.PathLike,
    test_share: float = 0.2,
    seed: int = 0,
) -> tuple[Path, Path]:
    """Split an annotation file of YouTube-VIS format by videos, every class in both parts wherever it can be.

    Videos go one by one, those of the rarest class first, to the part that still lacks most of what it should have of
    that class (iterative stratification, Sechidis et al., ECML 2011). The split depends on the content of the json and
    the seed alone.

    Args:
        json_path: the annotation file; crowd annotations do not count as objects of a class.
        output_dir: gets `train_split.json` and `test_split.json`, both in the same format with all categories, with
            the split's source, share, seed and videos in `info`.
        test_share: share of the videos of each class that the test part gets.
        seed: breaks ties.

    Returns:
        Paths of the train part and of the test part.

    Raises:
        FileNotFoundError: no such json.
        ValueError: it breaks the format, has no annotations, fewer than two videos, no video that can be spared, or
            `test_share` is not between 0 and 1.
    """
    parts = split_videos(read_annotations(json_path), Path(json_path).name, test_share, seed)
    paths = Path(output_dir) / "train_split.json", Path(output_dir) / "test_split.json"
    for part, path in zip(parts, paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        with complete_file(path) as file:
            file.write(json.dumps(part).encode())
    return paths


def split_videos(content: dict, source: str, test_share: float = 0.2, seed: int = 0) -> tuple[dict, dict]:
    """As `split_ytvis`, of a json that is read already; `source` is what `info` calls it.

    Raises:
        ValueError: there are no annotations, fewer than two videos, no video that can be spared, or `test_share` is not
            between 0 and 1.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share is {test_share}; give a share of the videos between 0 and 1, for example 0.2.")
    if not content.get("annotations") or len(content["videos"]) < 2:
        raise ValueError(
            f"{source} cannot be split: it has {len(content['videos'])} videos and "
            f"{len(content.get('annotations') or [])} annotations."
        )
    test_videos = _draw_test_videos(content, test_share, np.random.default_rng(seed))
    if not 0 < len(test_videos) < len(content["videos"]):
        raise ValueError(
            f"{source} cannot be split with a test_share of {test_share}: one part would be empty, since a class that "
            "a single video shows stays in the train part. Annotate more videos, or change the share."
        )

    def part(name: str, in_test: bool) -> dict:
        videos = [video for video in content["videos"] if (video["id"] in test_videos) == in_test]
        split = {
            "part": name,
            "source": source,
            "test_share": test_share,
            "seed": seed,
            "video_ids": [video["id"] for video in videos],
        }
        return {
            **content,
            "info": {**(content.get("info") or {}), "split": split},
            "videos": videos,
            "annotations": [row for row in content["annotations"] if (row["video_id"] in test_videos) == in_test],
        }

    return part("train", False), part("test", True)


def _draw_test_videos(content: dict, test_share: float, rng: np.random.Generator) -> set[int]:
    classes_of_video: dict[int, set[int]] = {video["id"]: set() for video in content["videos"]}
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd"):
            classes_of_video[annotation["video_id"]].add(annotation["category_id"])
    videos_of_class = defaultdict(list)
    for video, classes in classes_of_video.items():
        # A video without objects is a class of its own: both parts get their share of such videos.
        for category in classes or {None}:
            videos_of_class[category].append(video)
    wanted = {}  # class -> how many videos train and test part still lack of it
    for category, videos in videos_of_class.items():
        in_test = max(test_share * len(videos), min(1.0, len(videos) - 1.0))
        wanted[category] = [len(videos) - in_test, in_test]
    remaining = Counter({category: len(videos) for category, videos in videos_of_class.items()})
    free, test_videos = set(classes_of_video), set()
    while free:
        category = min((c for c in remaining if remaining[c]), key=lambda c: (remaining[c], c is None, c or 0))
        candidates = [video for video in videos_of_class[category] if video in free]
        for video in rng.permutation(candidates).tolist():
            lacking_in_train, lacking_in_test = wanted[category]
            is_test = lacking_in_test > lacking_in_train
            free.remove(video)
            if is_test:
                test_videos.add(video)
            for own in classes_of_video[video] or {None}:
                wanted[own][is_test] -= 1
                remaining[own] -= 1
    return test_videos
