"""What can be wrong with an annotation file of YouTube-VIS or COCO format, said so that it can be mended."""

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


@dataclass(frozen=True)
class AnnotationFormat:
    """How a format calls things: YouTube-VIS annotates the tracks of videos, COCO the objects of images."""

    name: str
    holder: str  # what annotations are of: "video" or "image"
    required_keys: dict[str, tuple[str, ...]]

    @property
    def section(self) -> str:
        return f"{self.holder}s"

    @property
    def reference(self) -> str:
        """The key of an annotation that names its holder; also the field of `Problem`."""
        return f"{self.holder}_id"


YTVIS = AnnotationFormat(
    "YouTube-VIS",
    "video",
    {
        "videos": ("id", "width", "height", "length", "file_names"),
        "categories": ("id", "name"),
        "annotations": ("id", "video_id", "category_id", "segmentations", "bboxes"),
    },
)
COCO = AnnotationFormat(
    "COCO",
    "image",
    {
        "images": ("id", "width", "height", "file_name"),
        "categories": ("id", "name"),
        "annotations": ("id", "image_id", "category_id", "segmentation", "bbox"),
    },
)
FORMATS = {"videos": YTVIS, "images": COCO}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `message` says what and what to do; the ids say where, None where there is none."""

    message: str
    video_id: int | None = None
    annotation_id: int | None = None
    image_id: int | None = None

    def __str__(self) -> str:
        places = []
        if self.video_id is not None:
            places.append(f"video {self.video_id}")
        if self.image_id is not None:
            places.append(f"image {self.image_id}")
        if self.annotation_id is not None:
            places.append(f"annotation {self.annotation_id}")
        return f"{', '.join(places)}: {self.message}" if places else self.message


def validate_annotations(
    json_path: str | os.PathLike, image_root: str | os.PathLike | None = None, limit: int = 20
) -> list[Problem]:
    """The first `limit` problems of an annotation file of YouTube-VIS or COCO format, empty if it is fine.

    Which of the two it is, its 'videos' or 'images' tell.

    Args:
        json_path: the annotation file.
        image_root: the folder that the file names are relative to; None: files are not looked for.
        limit: how many problems to list.

    Raises:
        FileNotFoundError: the json, or `image_root`, does not exist.
    """
    return _validate(json_path, image_root, limit, None)


def validate_ytvis(
    json_path: str | os.PathLike, image_root: str | os.PathLike | None = None, limit: int = 20
) -> list[Problem]:
    """As `validate_annotations`, of a file that has to be of YouTube-VIS format."""
    return _validate(json_path, image_root, limit, YTVIS)


def _validate(json_path, image_root, limit: int, form: AnnotationFormat | None) -> list[Problem]:
    if image_root is not None and not Path(image_root).is_dir():
        raise FileNotFoundError(f"The image folder {image_root} does not exist.")
    try:
        content = read_annotation_json(json_path)
    except ValueError as error:
        return [Problem(str(error))]
    if form is None:
        form = COCO if "images" in content and "videos" not in content else YTVIS
    problems = list(structure_problems(content, form, limit))
    if len(problems) < limit:
        problems += islice(_content_problems(content, form, image_root), limit - len(problems))
    return problems


def read_annotation_json(json_path: str | os.PathLike) -> dict:
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
            f"{json_path} holds a {type(content).__name__} at its top level; an object with 'videos' (of COCO: "
            "'images'), 'categories' and 'annotations' is expected (a list is the format of predictions)."
        )
    return content


# ---------------------------------------------------------------- structure: what makes a file unreadable


def structure_problems(content: dict, form: AnnotationFormat, limit: int | None = None) -> Iterator[Problem]:
    """Missing keys, ids, references and lengths that do not fit: the quick checks, masks not decoded."""
    return islice(_structure_problems(content, form), limit)


def _structure_problems(content: dict, form: AnnotationFormat) -> Iterator[Problem]:
    for section in (form.section, "categories"):
        if not isinstance(content.get(section), list):
            other = next(other for other in FORMATS.values() if other is not form)
            hint = ""
            if other.section in content and form.section not in content:
                hint = (
                    f" It has '{other.section}', so it is of {other.name} format: `kind: {other.section}` in a recipe."
                )
            yield Problem(f"The top-level key '{section}' is missing or no list; add it.{hint}")
            return
    if not content[form.section]:
        yield Problem(f"'{form.section}' is empty; add at least one {form.holder}.")
    if not content["categories"]:
        yield Problem("'categories' is empty; add at least one category.")
    annotations = content.get("annotations") or []
    if not isinstance(annotations, list):
        yield Problem(f"'annotations' is a {type(annotations).__name__}; make it a list.")
        return

    yield from _entry_problems(content["categories"], "categories", form)
    seen_names = set()
    for category in _complete(content["categories"], "categories", form):
        name = category["name"]
        if not isinstance(name, str) or not name:
            yield Problem(f"category {category['id']}: its name is {name!r}; give a text.")
        elif name in seen_names:
            yield Problem(f"category {category['id']}: the name '{name}' appears twice; merge the two or rename one.")
        seen_names.add(str(name))

    yield from _entry_problems(content[form.section], form.section, form)
    holders = {}
    for holder in _complete(content[form.section], form.section, form):
        problems = list(_holder_problems(holder, form))
        yield from problems
        if not problems:
            holders[holder["id"]] = holder

    yield from _entry_problems(annotations, "annotations", form)
    holder_ids, category_ids = _integer_ids(content[form.section]), _integer_ids(content["categories"])
    for annotation in _complete(annotations, "annotations", form):
        holder_id, where = annotation[form.reference], _place(annotation, form)
        if not _is_integer(holder_id) or holder_id not in holder_ids:
            yield Problem(
                f"there is no {form.holder} of this id in '{form.section}'; correct {form.reference} or add the "
                f"{form.holder}.",
                **where,
            )
            continue
        if not _is_integer(annotation["category_id"]) or annotation["category_id"] not in category_ids:
            yield Problem(
                f"category_id {annotation['category_id']} is not in 'categories' (ids {_shorten(category_ids)}); "
                "correct it or add the category.",
                **where,
            )
        if holder_id in holders:
            yield from _annotation_problems(annotation, holders[holder_id], form)


def _place(annotation: dict, form: AnnotationFormat) -> dict:
    return {form.reference: annotation[form.reference], "annotation_id": annotation["id"]}


def _entry_problems(entries: list, section: str, form: AnnotationFormat) -> Iterator[Problem]:
    """Missing keys, and ids that are missing, no integers, or used twice."""
    singular = "category" if section == "categories" else section.removesuffix("s")
    seen_ids = set()
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            yield Problem(f"{section}[{position}] is a {type(entry).__name__}; an object is expected.")
            continue
        where = {
            form.reference: entry.get("id") if section == form.section else entry.get(form.reference),
            "annotation_id": entry.get("id") if section == "annotations" else None,
        }
        missing = ", ".join(repr(key) for key in form.required_keys[section] if key not in entry)
        if missing:
            yield Problem(f"{section}[{position}] has no {missing}; add it.", **where)
        if "id" not in entry:
            continue
        if not _is_integer(entry["id"]):
            yield Problem(f"{section}[{position}]: its id is {entry['id']!r}, no integer.", **where)
        elif entry["id"] in seen_ids:
            yield Problem(
                f"{section}[{position}] uses the {singular} id {entry['id']} again; give every {singular} its own id.",
                **where,
            )
        else:
            seen_ids.add(entry["id"])


def _complete(entries: list, section: str, form: AnnotationFormat) -> Iterator[dict]:
    """The entries that later checks can rely on."""
    required = form.required_keys[section]
    for entry in entries:
        if isinstance(entry, dict) and all(key in entry for key in required) and _is_integer(entry["id"]):
            yield entry


def _integer_ids(entries: list) -> set[int]:
    return {entry["id"] for entry in entries if isinstance(entry, dict) and _is_integer(entry.get("id"))}


def _holder_problems(holder: dict, form: AnnotationFormat) -> Iterator[Problem]:
    where = {form.reference: holder["id"]}
    for key in ("width", "height", "length"):
        if key in form.required_keys[form.section] and (not _is_integer(holder[key]) or holder[key] < 1):
            yield Problem(f"'{key}' is {holder[key]!r}; give a positive integer.", **where)
    if form is COCO:
        if not isinstance(holder["file_name"], str):
            yield Problem(f"'file_name' is {holder['file_name']!r}; give a text.", **where)
        return
    file_names = holder["file_names"]
    if not isinstance(file_names, list) or not all(isinstance(name, str) for name in file_names):
        yield Problem("'file_names' is no list of texts; give one file name per frame.", **where)
    elif len(file_names) != holder["length"]:
        yield Problem(
            f"'length' is {holder['length']} but there are {len(file_names)} file_names; make them agree.", **where
        )


def _annotation_problems(annotation: dict, holder: dict, form: AnnotationFormat) -> Iterator[Problem]:
    where = _place(annotation, form)
    if form is YTVIS:
        for key in ("segmentations", "bboxes"):
            values = annotation[key]
            if not isinstance(values, list):
                yield Problem(f"'{key}' is {values!r:.60}; give a list with one entry (or null) per frame.", **where)
                return
            if len(values) != holder["length"]:
                longer = "longer" if len(values) > holder["length"] else "shorter"
                yield Problem(
                    f"the annotation is {longer} than its video: {len(values)} {key} for {holder['length']} frames; "
                    "give one entry per frame, null where the object is not visible.",
                    **where,
                )
                return
    for prefix, segmentation, box in _masks(annotation, form):
        for message in _mask_structure_messages(segmentation, box, holder, form):
            yield Problem(prefix + message, **where)


def _masks(annotation: dict, form: AnnotationFormat) -> Iterator[tuple[str, dict | list | None, list | None]]:
    """Beginning of a message, segmentation and box: one of an object in an image, one per frame of a track."""
    if form is COCO:
        yield "", annotation["segmentation"], annotation["bbox"]
        return
    for frame, (segmentation, box) in enumerate(zip(annotation["segmentations"], annotation["bboxes"], strict=True)):
        yield f"frame {frame}: ", segmentation, box


def _mask_structure_messages(segmentation, box, holder: dict, form: AnnotationFormat) -> Iterator[str]:
    if box and not (_is_number_list(box) and len(box) == 4):
        yield f"the box is {box!r:.60}; give [x, y, width, height] or null."
    if not segmentation:
        return
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if "size" not in segmentation or not isinstance(counts, str) and not _is_number_list(counts):
            yield "the RLE has no 'size' or no 'counts' (a text or a list of integers); give both."
            return
        expected = [holder["height"], holder["width"]]
        if segmentation["size"] != expected:
            hint = " (height and width are swapped)" if segmentation["size"] == expected[::-1] else ""
            yield (
                f"the RLE has the size {segmentation['size']} but the {form.holder} is {expected} (height, width)"
                f"{hint}; encode the mask at the size of the {form.holder}."
            )
    elif not isinstance(segmentation, list) or not all(_is_number_list(polygon) for polygon in segmentation):
        yield (
            f"the segmentation is {segmentation!r:.60}; give an RLE {{'size', 'counts'}}, a list of polygons "
            "[[x1, y1, x2, y2, ...], ...], or null."
        )


# ---------------------------------------------------------------- content: masks, boxes, files


def _content_problems(content: dict, form: AnnotationFormat, image_root: str | os.PathLike | None) -> Iterator[Problem]:
    """What is wrong inside well-formed entries; entries with structural problems are passed over."""
    holders = {}
    entries = content.get(form.section)
    for holder in _complete(entries if isinstance(entries, list) else [], form.section, form):
        if not any(_holder_problems(holder, form)):
            holders[holder["id"]] = holder
            if image_root is not None:
                yield from _file_problems(holder, form, Path(image_root))
    annotations = content.get("annotations")
    if not annotations:
        yield Problem("There are no annotations: the file can be used for prediction, not for training or evaluation.")
    for annotation in _complete(annotations if isinstance(annotations, list) else [], "annotations", form):
        holder = holders.get(annotation[form.reference]) if _is_integer(annotation[form.reference]) else None
        if holder is None or any(_annotation_problems(annotation, holder, form)):
            continue
        for prefix, segmentation, box in _masks(annotation, form):
            message = _mask_content_message(segmentation, box, holder["height"], holder["width"], form)
            if message is not None:
                yield Problem(prefix + message, **_place(annotation, form))


def _file_problems(holder: dict, form: AnnotationFormat, image_root: Path) -> Iterator[Problem]:
    names = holder["file_names"] if form is YTVIS else [holder["file_name"]]
    missing = [name for name in names if not (image_root / name).is_file()]
    if not missing:
        return
    first = image_root / missing[0]
    if form is COCO:
        message = f"the file {first} is missing; add it or correct file_name or the image folder."
    else:
        message = (
            f"{len(missing)} of {holder['length']} frames are missing, the first is {first}; add the files or correct "
            "file_names or the image folder."
        )
    yield Problem(message, **{form.reference: holder["id"]})


def _mask_content_message(segmentation, box, height: int, width: int, form: AnnotationFormat) -> str | None:
    """The first thing that is wrong with the mask and box of one frame or image."""
    if not segmentation and not box:
        return None
    if not segmentation or not box:
        present, absent = ("segmentation", "box") if segmentation else ("box", "segmentation")
        dropped = "frame" if form is YTVIS else "annotation"
        return f"there is a {present} but no {absent}, so the {dropped} is dropped; give both or neither."
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if len(polygon) < 6 or len(polygon) % 2:
                return f"a polygon of {len(polygon)} values is dropped; give x and y of at least 3 points."
        rle = mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    else:
        runs = _run_lengths(segmentation["counts"])
        if runs is None or (runs < 0).any() or runs.sum() != height * width:
            total = "cannot be decoded" if runs is None else f"covers {runs.sum()} pixels"
            return f"the RLE {total}, its size {segmentation['size']} asks for {height * width}; encode the mask again."
        rle = segmentation
        if isinstance(rle["counts"], list):
            rle = mask_utils.frPyObjects(rle, height, width)
    mask_box = mask_utils.toBbox(rle)
    if not mask_box[2:].all():
        return "the mask is empty but has a box; give null for both."
    corners = np.concatenate([mask_box[:2], mask_box[:2] + mask_box[2:]])
    given_corners = np.array([box[0], box[1], box[0] + box[2], box[1] + box[3]], dtype=np.float64)
    if np.abs(corners - given_corners).max() > BOX_TOLERANCE:
        return f"the box {box} is not the box of the mask, {mask_box.tolist()} (x, y, width, height); correct it."
    return None


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
    return isinstance(values, list) and set(map(type, values)) <= {int, float} and all(map(isfinite, values))


def _shorten(values: set[int]) -> str:
    values = sorted(values)
    return str(values) if len(values) <= 10 else f"{values[0]} to {values[-1]}"
