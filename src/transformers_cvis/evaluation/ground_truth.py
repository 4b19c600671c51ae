"""Ground truth and results in YouTube-VIS format: read, and refused early when they do not belong together."""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from pathlib import Path, PurePath

from pycocotools import mask as mask_utils


@dataclass
class GroundTruth:
    """A checked YouTube-VIS json.

    Attributes:
        videos (`dict[int, dict]`): video by id, with `width`, `height` (pixels) and `length` (frames).
        categories (`dict[int, str]`): name by category id.
        annotations (`list[dict]`): tracks with one mask (or None) per frame of their video; empty for a test split.
    """

    videos: dict[int, dict]
    categories: dict[int, str]
    annotations: list[dict]

    @classmethod
    def read(cls, source: "GroundTruth | dict | str | os.PathLike") -> "GroundTruth":
        """Take a json that is read already, or read it from its path.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is no such json, an id is missing or used twice, or an annotation does not fit its video or
                the categories. The message names the entry.
        """
        if isinstance(source, cls):
            return source
        content = _read_json(source)
        if not isinstance(content, dict) or not {"videos", "categories"} <= content.keys():
            raise ValueError(
                "The ground truth is no YouTube-VIS json: it needs an object with 'videos', 'categories' and, to "
                "evaluate, 'annotations'. (A list is the format of results.)"
            )
        annotations = content.get("annotations") or []
        for section, entries in (("videos", content["videos"]), ("categories", content["categories"])):
            _check_ids(entries, section)
        _check_ids(annotations, "annotations")
        names = [category.get("name") for category in content["categories"]]
        if None in names or (repeated := _repeated(names)):
            what = "a category has no 'name'" if None in names else f"the category name {repeated[0]!r} appears twice"
            raise ValueError(f"Ground truth: {what}. Categories are told apart by name; give each its own.")
        for video in content["videos"]:
            for key in ("width", "height", "length"):
                if not isinstance(video.get(key), int) or video[key] < 1:
                    raise ValueError(
                        f"Ground truth: video {video['id']} has {key!r} {video.get(key)!r}, not a number > 0."
                    )
        return cls(
            videos={video["id"]: video for video in content["videos"]},
            categories={category["id"]: category["name"] for category in content["categories"]},
            annotations=annotations,
        )

    def size(self, video_id: int) -> tuple[int, int]:
        """Height and width of a video in pixels."""
        return self.videos[video_id]["height"], self.videos[video_id]["width"]

    def check_annotations(self) -> None:
        """Refuse annotations of unknown videos or categories, or longer or shorter than their video.

        Raises:
            ValueError: names the annotation; or there are none at all.
        """
        if not self.annotations:
            raise ValueError(
                "The ground truth has no annotations, so there is nothing to evaluate against. The published json of "
                "the validation and test videos comes without them: write the results with `write_submission` and "
                "upload the zip to the data set's server, or evaluate on a split of the annotated videos."
            )
        for annotation in self.annotations:
            self._check_track(annotation, f"Ground truth: annotation {annotation['id']}")

    def _check_track(self, track: dict, where: str) -> None:
        for key in ("video_id", "category_id", "segmentations"):
            if key not in track:
                raise ValueError(f"{where} has no {key!r}.")
        if not isinstance(track["segmentations"], list):
            raise ValueError(f"{where}: 'segmentations' is a {type(track['segmentations']).__name__}, not a list.")
        if track["video_id"] not in self.videos:
            raise ValueError(
                f"{where}: video id {track['video_id']} is not one of the ground truth's {len(self.videos)}."
            )
        if track["category_id"] not in self.categories:
            raise ValueError(
                f"{where}: category id {track['category_id']} is not in the ground truth, which has "
                f"{', '.join(f'{number} ({name})' for number, name in sorted(self.categories.items()))}."
            )
        length = self.videos[track["video_id"]]["length"]
        if len(track["segmentations"]) != length:
            relation = "longer" if len(track["segmentations"]) > length else "shorter"
            raise ValueError(
                f"{where} is {relation} than its video {track['video_id']}: {len(track['segmentations'])} "
                f"segmentations, {length} frames. Give one mask per frame, null where the object is not visible."
            )


def read_results(source: list | dict | str | os.PathLike, ground_truth: GroundTruth) -> list[dict]:
    """Results as a list of tracks `{"video_id", "category_id", "score", "segmentations"}`.

    Takes such a list, a json with `annotations` and the `categories` that their ids mean, or the path of either. With
    categories, an id that has another name in the ground truth is refused, and with `videos` an id that is another
    video there, as far as `width`, `height`, `length` and `file_names` tell.

    Raises:
        FileNotFoundError, ValueError: nothing to read, or categories or videos that do not agree.
    """
    content = _read_json(source)
    if isinstance(content, list):
        return content
    if not isinstance(content, dict) or not {"annotations", "categories"} <= content.keys():
        raise ValueError(
            "The results are neither a list of tracks nor an object with 'annotations' and 'categories': "
            "expected [{'video_id', 'category_id', 'score', 'segmentations'}, ...]."
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
    """Refuse an id that is one video in the results and another in the ground truth."""
    _check_ids(videos, "videos", "Results")
    folders = {_folder(video) for video in ground_truth.videos.values()}
    for video in videos:
        expected = ground_truth.videos.get(video["id"])
        if expected is None:  # its tracks are refused, if there are any
            continue
        for key in ("length", "height", "width"):
            if key in video and video[key] != expected[key]:
                raise _other_video(video["id"], f"has {key} {video[key]}", f"has {expected[key]}")
        for found, wanted in zip(video.get("file_names") or [], expected.get("file_names") or [], strict=False):
            source, is_segmented, _ = found.rpartition("#")  # `transformers-cvis segment` names the source and a number
            if is_segmented:
                # A source may be called anything, but not as another video of the ground truth.
                name = PurePath(source).stem
                differs = name != _folder(expected) and name in folders
            else:
                # Either may start from another folder, and be another form of the same picture.
                differs = any(
                    ours != theirs for ours, theirs in zip(_backwards(found), _backwards(wanted), strict=False)
                )
            if differs:
                error = _other_video(video["id"], f"is {source or found!r}", f"is {wanted!r}")
                raise ValueError(f"{error} Where they are the same after all, leave 'videos' out of the results.")


def _folder(video: dict) -> str | None:
    """The name of the folder of a video's frames."""
    return next((PurePath(name).parent.name for name in video.get("file_names") or []), None)


def _backwards(name: str) -> tuple[str, ...]:
    """A path from its end: file name without suffix, folder, folder of that, ..."""
    path = PurePath(name)
    return (path.stem, *reversed(path.parent.parts))


def _other_video(video_id: int, found: str, expected: str) -> ValueError:
    return ValueError(
        f"Results: video {video_id} {found}, but the ground truth's video {video_id} {expected}. Segment the ground "
        "truth's own videos, all their frames and in the order of their ids, as `transformers-cvis evaluate --images` "
        "does."
    )


def check_results(results: Iterable[dict], ground_truth: GroundTruth) -> None:
    """Refuse results that do not belong to the ground truth: ids, number of frames, scores. Masks are not decoded.

    Raises:
        ValueError: names the first wrong track by its position.
    """
    for position, track in enumerate(results):
        where = f"Results: track {position}"
        if not isinstance(track, dict):
            raise ValueError(f"{where} is a {type(track).__name__}, not an object.")
        ground_truth._check_track(track, where)
        score = track.get("score")
        if isinstance(score, bool) or not isinstance(score, Real) or not math.isfinite(score):
            raise ValueError(f"{where} has the score {score!r}; a finite number is needed.")


def mask_counts(track: dict, size: tuple[int, int], where: str) -> list[str | bytes]:
    """The compressed run lengths of a track, frame by frame; an absent frame becomes an empty mask.

    Args:
        track: its `segmentations` hold per frame a compressed or uncompressed RLE, polygons, or None.
        size: height and width of the video in pixels.
        where: names the track in messages.

    Raises:
        ValueError: a mask of another size, or of no known form.
    """
    expected = list(size)
    return [
        counts
        if type(mask) is dict and mask.get("size") == expected and type(counts := mask.get("counts")) in (str, bytes)
        else _compressed(mask, size, f"{where}, frame {frame}")["counts"]
        for frame, mask in enumerate(track["segmentations"])
    ]


@lru_cache
def _empty_mask(size: tuple[int, int]) -> dict:
    return mask_utils.frPyObjects({"size": list(size), "counts": [size[0] * size[1]]}, *size)


def _compressed(segmentation: dict | list | None, size: tuple[int, int], where: str) -> dict:
    """The uncommon forms, and what is wrong with a mask of no form."""
    if not segmentation:
        return _empty_mask(size)
    if isinstance(segmentation, list):
        return mask_utils.merge(mask_utils.frPyObjects(segmentation, *size))
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError(
            f"{where}: a mask is an RLE {{'size', 'counts'}}, polygons or null, got {str(segmentation)[:80]}."
        )
    if tuple(segmentation["size"]) != size:
        raise ValueError(
            f"{where}: the mask has size {list(segmentation['size'])} but the video is {list(size)} (height, width). "
            "Resize the masks to the video's own size before they are encoded."
        )
    if isinstance(segmentation["counts"], list):
        if sum(segmentation["counts"]) != size[0] * size[1]:
            raise ValueError(
                f"{where}: the run lengths cover {sum(segmentation['counts'])} pixels but {size[0]} x {size[1]} are "
                f"{size[0] * size[1]}."
            )
        return mask_utils.frPyObjects(segmentation, *size)
    return segmentation


def _read_json(source):
    if not isinstance(source, (str, os.PathLike)):
        return source
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not valid json ({error}); is the file whole?") from error


def _check_ids(entries: list[dict], section: str, where: str = "Ground truth") -> None:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{where}: {section!r} is not a list of objects.")
    for position, entry in enumerate(entries):
        if isinstance(entry.get("id"), bool) or not isinstance(entry.get("id"), int):
            raise ValueError(f"{where}: {section}[{position}] has the id {entry.get('id')!r}; give an integer.")
    if repeated := _repeated([entry["id"] for entry in entries]):
        raise ValueError(f"{where}: id {repeated[0]} appears twice in {section!r}; ids must be unique.")


def _repeated(values: list) -> list:
    return [value for value, count in Counter(values).items() if count > 1]
