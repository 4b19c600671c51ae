"""What can be wrong with an annotation file of YouTube-VIS format, said so that it can be mended."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_utils

BOX_TOLERANCE = 2.0  # pixels that a given box may differ from the box of its mask
REQUIRED_KEYS = {
    "videos": ("id", "width", "height", "length", "file_names"),
    "categories": ("id", "name"),
    "annotations": ("id", "video_id", "category_id", "segmentations", "bboxes"),
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `message` says what and what to do; the ids say where, None where there is none."""

    message: str
    video_id: int | None = None
    annotation_id: int | None = None

    def __str__(self) -> str:
        places = []
        if self.video_id is not None:
            places.append(f"video {self.video_id}")
        if self.annotation_id is not None:
            places.append(f"annotation {self.annotation_id}")
        return f"{', '.join(places)}: {self.message}" if places else self.message


def validate_ytvis(
    json_path: str | os.PathLike, image_root: str | os.PathLike | None = None, limit: int = 20
) -> list[Problem]:
    """The first `limit` problems of an annotation file of YouTube-VIS format, empty if it is fine.

    Args:
        json_path: the annotation file.
        image_root: the folder that `file_names` are relative to; None: frames are not looked for.
        limit: how many problems to list.

    Raises:
        FileNotFoundError: the json, or `image_root`, does not exist.
    """
    if image_root is not None and not Path(image_root).is_dir():
        raise FileNotFoundError(f"The image folder {image_root} does not exist.")
    try:
        content = read_ytvis_json(json_path)
    except ValueError as error:
        return [Problem(str(error))]
    problems = list(structure_problems(content, limit))
    if len(problems) < limit:
        problems += islice(_content_problems(content, image_root), limit - len(problems))
    return problems


def read_ytvis_json(json_path: str | os.PathLike) -> dict:
    """Parse the file.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is no json, or its top level is no object.
    """
    json_path = Path(json_path)
    if not json_path.is_file():
        raise FileNotFoundError(f"The annotation file {json_path} does not exist.")
    try:
        content = json.loads(json_path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{json_path} is not valid json ({error}); is the file whole?") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{json_path} holds a {type(content).__name__} at its top level; an object with 'videos', 'categories' and "
            "'annotations' is expected (a list is the format of predictions)."
        )
    return content


# ---------------------------------------------------------------- structure: what makes a file unreadable


def structure_problems(content: dict, limit: int | None = None) -> Iterator[Problem]:
    """Missing keys, ids, references and lengths that do not fit: the quick checks, masks not decoded."""
    return islice(_structure_problems(content), limit)


def _structure_problems(content: dict) -> Iterator[Problem]:
    for section in ("videos", "categories"):
        if not isinstance(content.get(section), list):
            yield Problem(f"The top-level key '{section}' is missing or no list; add it.")
            return
    if not content["videos"]:
        yield Problem("'videos' is empty; add at least one video.")
    if not content["categories"]:
        yield Problem("'categories' is empty; add at least one category.")
    annotations = content.get("annotations") or []
    if not isinstance(annotations, list):
        yield Problem(f"'annotations' is a {type(annotations).__name__}; make it a list.")
        return

    yield from _entry_problems(content["categories"], "categories")
    seen_names = set()
    for category in _complete(content["categories"], "categories"):
        name = category["name"]
        if not isinstance(name, str) or not name:
            yield Problem(f"category {category['id']}: its name is {name!r}; give a text.")
        elif name in seen_names:
            yield Problem(f"category {category['id']}: the name '{name}' appears twice; merge the two or rename one.")
        seen_names.add(str(name))

    yield from _entry_problems(content["videos"], "videos")
    videos = {}
    for video in _complete(content["videos"], "videos"):
        problems = list(_video_problems(video))
        yield from problems
        if not problems:
            videos[video["id"]] = video

    yield from _entry_problems(annotations, "annotations")
    video_ids, category_ids = _integer_ids(content["videos"]), _integer_ids(content["categories"])
    for annotation in _complete(annotations, "annotations"):
        where = {"video_id": annotation["video_id"], "annotation_id": annotation["id"]}
        if not _is_integer(annotation["video_id"]) or annotation["video_id"] not in video_ids:
            yield Problem("there is no video of this id in 'videos'; correct video_id or add the video.", **where)
            continue
        if not _is_integer(annotation["category_id"]) or annotation["category_id"] not in category_ids:
            yield Problem(
                f"category_id {annotation['category_id']} is not in 'categories' (ids {_shorten(category_ids)}); "
                "correct it or add the category.",
                **where,
            )
        if annotation["video_id"] in videos:
            yield from _track_problems(annotation, videos[annotation["video_id"]], where)


def _entry_problems(entries: list, section: str) -> Iterator[Problem]:
    """Missing keys, and ids that are missing, no integers, or used twice."""
    singular = {"videos": "video", "categories": "category", "annotations": "annotation"}[section]
    seen_ids = set()
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            yield Problem(f"{section}[{position}] is a {type(entry).__name__}; an object is expected.")
            continue
        video_id = entry.get("id") if section == "videos" else entry.get("video_id")
        annotation_id = entry.get("id") if section == "annotations" else None
        missing = ", ".join(repr(key) for key in REQUIRED_KEYS[section] if key not in entry)
        if missing:
            yield Problem(f"{section}[{position}] has no {missing}; add it.", video_id, annotation_id)
        if "id" not in entry:
            continue
        if not _is_integer(entry["id"]):
            yield Problem(f"{section}[{position}]: its id is {entry['id']!r}, no integer.", video_id, annotation_id)
        elif entry["id"] in seen_ids:
            yield Problem(
                f"{section}[{position}] uses the {singular} id {entry['id']} again; give every {singular} its own id.",
                video_id,
                annotation_id,
            )
        else:
            seen_ids.add(entry["id"])


def _complete(entries: list, section: str) -> Iterator[dict]:
    """The entries that later checks can rely on."""
    for entry in entries:
        if isinstance(entry, dict) and all(key in entry for key in REQUIRED_KEYS[section]) and _is_integer(entry["id"]):
            yield entry


def _integer_ids(entries: list) -> set[int]:
    return {entry["id"] for entry in entries if isinstance(entry, dict) and _is_integer(entry.get("id"))}


def _video_problems(video: dict) -> Iterator[Problem]:
    for key in ("width", "height", "length"):
        if not _is_integer(video[key]) or video[key] < 1:
            yield Problem(f"'{key}' is {video[key]!r}; give a positive integer.", video["id"])
    file_names = video["file_names"]
    if not isinstance(file_names, list) or not all(isinstance(name, str) for name in file_names):
        yield Problem("'file_names' is no list of texts; give one file name per frame.", video["id"])
    elif len(file_names) != video["length"]:
        yield Problem(
            f"'length' is {video['length']} but there are {len(file_names)} file_names; make them agree.", video["id"]
        )


def _track_problems(annotation: dict, video: dict, where: dict) -> Iterator[Problem]:
    for key in ("segmentations", "bboxes"):
        values = annotation[key]
        if not isinstance(values, list):
            yield Problem(f"'{key}' is {values!r:.60}; give a list with one entry (or null) per frame.", **where)
            return
        if len(values) != video["length"]:
            longer = "longer" if len(values) > video["length"] else "shorter"
            yield Problem(
                f"the annotation is {longer} than its video: {len(values)} {key} for {video['length']} frames; give "
                "one entry per frame, null where the object is not visible.",
                **where,
            )
            return
    for frame, (segmentation, box) in enumerate(zip(annotation["segmentations"], annotation["bboxes"], strict=True)):
        if box and not (_is_number_list(box) and len(box) == 4):
            yield Problem(f"frame {frame}: the box is {box!r:.60}; give [x, y, width, height] or null.", **where)
        if not segmentation:
            continue
        if isinstance(segmentation, dict):
            yield from _rle_structure_problems(segmentation, video, frame, where)
        elif not isinstance(segmentation, list) or not all(_is_number_list(polygon) for polygon in segmentation):
            yield Problem(
                f"frame {frame}: the segmentation is {segmentation!r:.60}; give an RLE {{'size', 'counts'}}, a list of "
                "polygons [[x1, y1, x2, y2, ...], ...], or null.",
                **where,
            )


def _rle_structure_problems(rle: dict, video: dict, frame: int, where: dict) -> Iterator[Problem]:
    counts = rle.get("counts")
    if "size" not in rle or not isinstance(counts, str) and not _is_number_list(counts):
        yield Problem(
            f"frame {frame}: the RLE has no 'size' or no 'counts' (a text or a list of integers); give both.", **where
        )
        return
    expected = [video["height"], video["width"]]
    if rle["size"] != expected:
        hint = " (height and width are swapped)" if rle["size"] == expected[::-1] else ""
        yield Problem(
            f"frame {frame}: the RLE has the size {rle['size']} but the video is {expected} (height, width){hint}; "
            "encode the mask at the size of the video.",
            **where,
        )


# ---------------------------------------------------------------- content: masks, boxes, frames


def _content_problems(content: dict, image_root: str | os.PathLike | None) -> Iterator[Problem]:
    """What is wrong inside well-formed entries; entries with structural problems are passed over."""
    videos = {}
    for video in _complete(content.get("videos") if isinstance(content.get("videos"), list) else [], "videos"):
        if not any(_video_problems(video)):
            videos[video["id"]] = video
            if image_root is not None:
                yield from _file_problems(video, Path(image_root))
    annotations = content.get("annotations")
    if not annotations:
        yield Problem("There are no annotations: the file can be used for prediction, not for training or evaluation.")
    for annotation in _complete(annotations if isinstance(annotations, list) else [], "annotations"):
        video = videos.get(annotation["video_id"]) if _is_integer(annotation["video_id"]) else None
        where = {"video_id": annotation["video_id"], "annotation_id": annotation["id"]}
        if video is None or any(_track_problems(annotation, video, where)):
            continue
        frames = enumerate(zip(annotation["segmentations"], annotation["bboxes"], strict=True))
        for frame, (segmentation, box) in frames:
            yield from _frame_problems(segmentation, box, video, frame, where)


def _file_problems(video: dict, image_root: Path) -> Iterator[Problem]:
    missing = [name for name in video["file_names"] if not (image_root / name).is_file()]
    if missing:
        yield Problem(
            f"{len(missing)} of {video['length']} frames are missing, the first is {image_root / missing[0]}; add the "
            "files or correct file_names or the image folder.",
            video["id"],
        )


def _frame_problems(segmentation, box, video: dict, frame: int, where: dict) -> Iterator[Problem]:
    if not segmentation and not box:
        return
    if not segmentation or not box:
        present, absent = ("segmentation", "box") if segmentation else ("box", "segmentation")
        yield Problem(
            f"frame {frame}: there is a {present} but no {absent}, so the frame is dropped; give both or neither.",
            **where,
        )
        return
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if len(polygon) < 6 or len(polygon) % 2:
                yield Problem(
                    f"frame {frame}: a polygon of {len(polygon)} values is dropped; give x and y of at least 3 points.",
                    **where,
                )
                return
        rle = mask_utils.merge(mask_utils.frPyObjects(segmentation, video["height"], video["width"]))
    else:
        runs = _run_lengths(segmentation["counts"])
        num_pixels = video["height"] * video["width"]
        if runs is None or (runs < 0).any() or runs.sum() != num_pixels:
            total = "cannot be decoded" if runs is None else f"covers {runs.sum()} pixels"
            yield Problem(
                f"frame {frame}: the RLE {total}, its size {segmentation['size']} asks for {num_pixels}; encode the "
                "mask again.",
                **where,
            )
            return
        rle = segmentation
        if isinstance(rle["counts"], list):
            rle = mask_utils.frPyObjects(rle, video["height"], video["width"])
    mask_box = mask_utils.toBbox(rle)
    if not mask_box[2:].all():
        yield Problem(f"frame {frame}: the mask is empty but has a box; give null for both.", **where)
        return
    corners = np.concatenate([mask_box[:2], mask_box[:2] + mask_box[2:]])
    given_corners = np.array([box[0], box[1], box[0] + box[2], box[1] + box[3]], dtype=np.float64)
    if np.abs(corners - given_corners).max() > BOX_TOLERANCE:
        yield Problem(
            f"frame {frame}: the box {box} is not the box of the mask, {mask_box.tolist()} (x, y, width, height); "
            "correct it.",
            **where,
        )


def _run_lengths(counts: str | list) -> np.ndarray | None:
    """The run lengths of an RLE, None if they cannot be read.

    COCO's text holds 5 bits a character (offset 48, bit 5: more follows, lowest group first, sign-extended); from the
    fourth run on it holds the difference to the run two before.
    """
    if isinstance(counts, list):
        return np.asarray(counts, dtype=np.int64)
    groups = np.frombuffer(counts.encode("utf-8"), dtype=np.uint8).astype(np.int64) - 48
    if not groups.size or (groups < 0).any() or (groups > 63).any() or groups[-1] & 0x20:
        return None
    is_last = (groups & 0x20) == 0
    starts = np.concatenate([[0], np.flatnonzero(is_last)[:-1] + 1])
    run_of_group = np.cumsum(is_last) - is_last
    shift = 5 * (np.arange(groups.size) - starts[run_of_group])
    values = np.add.reduceat((groups & 0x1F) << shift, starts)
    last = np.flatnonzero(is_last)
    values -= np.where(groups[last] & 0x10, np.int64(1) << (shift[last] + 5), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _is_integer(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number_list(values) -> bool:
    return isinstance(values, list) and all(isinstance(value, (int, float)) and isfinite(value) for value in values)


def _shorten(values: set[int]) -> str:
    values = sorted(values)
    return str(values) if len(values) <= 10 else f"{values[0]} to {values[-1]}"
