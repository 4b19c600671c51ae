# SPDX-License-Identifier: Apache-2.0
"""Rules for the fields of an annotation file. New rules go here.

Three functions find the problems of one video or image, of one annotation, and of one mask. Each yields the messages of
all its rules, without the place. [`structure_problems`] and [`content_problems`] run them over a file and add the
place; the evaluation runs them over ground truth and results. Problems of structure make a file unreadable, and are
checked whenever a file is read. Problems of content need masks and pictures; only `transformers-cvis validate` checks
them.
"""

import os
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from .. import rle
from .formats import FORMATS, AnnotationFormat, Problem

BOX_TOLERANCE = 2.0  # pixels that a given box may differ from the box of its mask

# Rules of one entry


def holder_messages(holder: dict, form: AnnotationFormat) -> Iterator[str]:
    """Yield the problems of a video or image that has all required keys."""
    keys = form.required_keys[form.section]
    for key in ("width", "height", "length"):
        if key in keys and (not is_integer(holder[key]) or holder[key] < 1):
            yield f"'{key}' is {holder[key]!r}; give a positive integer."
    if "file_name" in keys and not isinstance(holder["file_name"], str):
        yield f"'file_name' is {holder['file_name']!r}; give a string."
    if "file_names" in keys:
        yield from file_names_messages(holder)


def file_names_messages(video: dict) -> Iterator[str]:
    """Yield the problems of the file names of a video, compared with its length."""
    file_names = video.get("file_names")
    if not isinstance(file_names, list) or not all(isinstance(name, str) for name in file_names):
        yield "'file_names' is not a list of strings; give one file name per frame."
    elif len(file_names) != video["length"]:
        yield f"'length' is {video['length']} but there are {len(file_names)} file_names; make them agree."


def reference_message(
    annotation: dict, holder_ids: Mapping[int, Any], category_names: Mapping[int, str], form: AnnotationFormat
) -> str | None:
    """Return the problem of an annotation with the id of its video or image or of its category, or None.

    Args:
        annotation: entry that has all required keys.
        holder_ids: known videos or images by id.
        category_names: names of the known categories by id.
        form: format of the file.
    """
    number = annotation[form.reference]
    if not is_integer(number) or number not in holder_ids:
        return f"{form.reference} {number!r} is not in '{form.section}'; correct it or add the {form.holder}."
    category_id = annotation["category_id"]
    if not is_integer(category_id) or category_id not in category_names:
        return (
            f"category_id {category_id!r} is not in 'categories' ({_shorten(category_names)}); correct it or add the "
            "category."
        )
    return None


def annotation_messages(annotation: dict, holder: dict, form: AnnotationFormat) -> Iterator[str]:
    """Yield the problems of an annotation of a correct video or image, apart from its ids.

    Args:
        annotation: entry that has all required keys.
        holder: video or image that it belongs to.
        form: format of the file.
    """
    keys = form.required_keys["annotations"]
    if "score" in keys and not (is_number(annotation["score"]) and isfinite(annotation["score"])):
        yield f"the score is {annotation['score']!r}; give a finite number."
    for key in ("segmentations", "bboxes"):
        if key not in keys:
            continue
        values = annotation[key]
        if not isinstance(values, list):
            yield f"'{key}' is {values!r:.60}; give a list with one entry (or null) per frame."
            return
        if len(values) != holder["length"]:
            longer = "longer" if len(values) > holder["length"] else "shorter"
            yield (
                f"the annotation is {longer} than its video: {len(values)} {key} for {holder['length']} frames; give "
                "one entry per frame, null where the object is not visible."
            )
            return
    for prefix, segmentation, box in _masks(annotation, form):
        if box and not (_is_number_list(box) and len(box) == 4):
            yield f"{prefix}the box is {box!r:.60}; give [x, y, width, height] or null."
        message = mask_structure_message(segmentation, (holder["height"], holder["width"]), form.holder)
        if message is not None:
            yield prefix + message


def mask_structure_message(segmentation: Any, size: tuple[int, int], holder: str) -> str | None:
    """Return the problem that makes a mask unreadable, or None. Run lengths and polygons are not checked.

    Args:
        segmentation: RLE, list of polygons, or None (or empty) where the object is not visible.
        size: height and width of the video or image.
        holder: "video" or "image".
    """
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if "size" not in segmentation or (not isinstance(counts, (str, bytes)) and not _is_number_list(counts)):
            return "the RLE has no 'size' or no 'counts' (a string or a list of integers); give both."
        given, expected = segmentation["size"], list(size)
        given = list(given) if isinstance(given, tuple) else given
        if given != expected:
            hint = " (height and width are swapped)" if given == expected[::-1] else ""
            return (
                f"the RLE has the size {given} but the {holder} is {expected} (height, width){hint}; encode the mask "
                f"at the size of the {holder}."
            )
    elif not isinstance(segmentation, list) or not all(_is_number_list(polygon) for polygon in segmentation):
        return (
            f"the segmentation is {segmentation!r:.60}; give an RLE {{'size', 'counts'}}, a list of polygons "
            "[[x1, y1, x2, y2, ...], ...], or null."
        )
    return None


def run_lengths_message(counts: str | bytes | list, size: tuple[int, int]) -> str | None:
    """Return the problem of the run lengths of an RLE of `size` (height, width), or None."""
    runs, height, width = rle.run_lengths(counts), *size
    if runs is not None and not (runs < 0).any() and runs.sum() == height * width:
        return None
    total = "cannot be decoded" if runs is None else f"covers {runs.sum()} pixels"
    return f"the RLE {total}, its size {[height, width]} asks for {height * width}; encode the mask again."


def mask_content_message(segmentation: Any, box: Any, size: tuple[int, int], form: AnnotationFormat) -> str | None:
    """Return the first problem of a well-formed mask and its box, in one frame or image, or None.

    Args:
        segmentation: RLE, list of polygons, or None (or empty).
        box: x, y, width, height in pixels, or None (or empty).
        size: height and width of the video or image.
        form: format of the file.
    """
    if not segmentation and not box:
        return None
    if not segmentation or not box:
        present, absent = ("segmentation", "box") if segmentation else ("box", "segmentation")
        dropped = "frame" if form.holder == "video" else "annotation"
        return f"there is a {present} but no {absent}, so the {dropped} is dropped; give both or neither."
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if len(polygon) < 6 or len(polygon) % 2:
                return f"a polygon of {len(polygon)} values is dropped; give x and y of at least 3 points."
    elif message := run_lengths_message(segmentation["counts"], size):
        return message
    (mask_box,) = rle.boxes([rle.compress(segmentation, size)])
    if not mask_box[2:].all():
        return "the mask is empty but has a box; give null for both."
    corners = np.concatenate([mask_box[:2], mask_box[:2] + mask_box[2:]])
    given_corners = np.array([box[0], box[1], box[0] + box[2], box[1] + box[3]], dtype=np.float64)
    if np.abs(corners - given_corners).max() > BOX_TOLERANCE:
        return f"the box {box} is not the box of the mask, {mask_box.tolist()} (x, y, width, height); correct it."
    return None


# Rules of a file: structure


def structure_problems(content: dict, form: AnnotationFormat, limit: int | None = None) -> Iterator[Problem]:
    """Find missing keys, and ids, references and lengths that do not fit.

    Args:
        content: content of the file.
        form: format of the file.
        limit: largest number of problems to find; None finds all.
    """
    missing = section_problems(content, form)
    if missing:
        return islice(missing, limit)
    holders = correct_holders(content, form)
    return islice(
        chain(
            empty_section_problems(content, form),
            category_problems(content["categories"], form),
            holder_problems(content[form.section], form),
            annotation_problems(content.get("annotations"), holders, category_names(content), form),
        ),
        limit,
    )


def section_problems(content: dict, form: AnnotationFormat) -> list[Problem]:
    """Return a problem if a top-level list is missing; nothing else can be checked without it."""
    for section in (form.section, "categories"):
        if not isinstance(content.get(section), list):
            other = next(other for other in FORMATS.values() if other.holder != form.holder)
            hint = ""
            if other.section in content and form.section not in content:
                hint = (
                    f" It has '{other.section}', so it is of {other.name} format: `kind: {other.section}` in a recipe."
                )
            return [Problem(f"The top-level key '{section}' is missing or not a list; add it.{hint}")]
    return []


def empty_section_problems(content: dict, form: AnnotationFormat) -> Iterator[Problem]:
    """Find top-level lists without an entry."""
    if not form.may_be_empty and not content[form.section]:
        yield Problem(f"'{form.section}' is empty; add at least one {form.holder}.")
    if not form.may_be_empty and not content["categories"]:
        yield Problem("'categories' is empty; add at least one category.")


def category_problems(categories: list, form: AnnotationFormat) -> Iterator[Problem]:
    """Find categories without a name of their own."""
    yield from entry_problems(categories, "categories", form)
    seen_names = set()
    for category in _complete(categories, "categories", form):
        name = category["name"]
        if not isinstance(name, str) or not name:
            yield Problem(f"category {category['id']}: its name is {name!r}; give a string.")
        elif name in seen_names:
            yield Problem(f"category {category['id']}: the name '{name}' appears twice; merge the two or rename one.")
        seen_names.add(str(name))


def holder_problems(holders: list, form: AnnotationFormat) -> Iterator[Problem]:
    """Find the problems of the videos or images of a file."""
    yield from entry_problems(holders, form.section, form)
    for holder in _complete(holders, form.section, form):
        for message in holder_messages(holder, form):
            yield Problem(message, **{form.reference: holder["id"]})


def annotation_problems(
    annotations: Any, holders: Mapping[int, dict | None], names: Mapping[int, str], form: AnnotationFormat
) -> Iterator[Problem]:
    """Find the problems of the annotations of a file.

    Args:
        annotations: the section, or None (or empty) if the file has none.
        holders: videos or images by id, None for one that has problems itself.
        names: names of the categories by id.
        form: format of the file.
    """
    annotations = annotations or []
    if not isinstance(annotations, list):
        yield Problem(f"'annotations' is a {type(annotations).__name__}; make it a list.")
        return
    yield from entry_problems(annotations, "annotations", form)
    for annotation in _complete(annotations, "annotations", form):
        message = reference_message(annotation, holders, names, form)
        holder = holders[annotation[form.reference]] if message is None else None
        messages = [message] if message else annotation_messages(annotation, holder, form) if holder else ()
        for message in messages:
            yield Problem(message, **_place(annotation, form))


def entry_problems(entries: Any, section: str, form: AnnotationFormat) -> Iterator[Problem]:
    """Find entries that are not objects, lack a key, or have an id that is not an integer or is used twice."""
    if not isinstance(entries, list):
        yield Problem(f"'{section}' is a {type(entries).__name__}; make it a list.")
        return
    singular = "category" if section == "categories" else section.removesuffix("s")
    seen_ids = set()
    for position, entry in enumerate(entries):
        name = f"{section}[{position}]"
        message = entry_message(entry, section, form)
        if not isinstance(entry, dict):
            yield Problem(f"{name} {message}")
            continue
        where = {
            form.reference: entry.get("id") if section == form.section else entry.get(form.reference),
            "annotation_id": entry.get("id") if section == "annotations" else None,
        }
        if message is not None:
            yield Problem(f"{name} {message}", **where)
        if "id" not in entry:
            continue
        if not is_integer(entry["id"]):
            yield Problem(f"{name}: its id is {entry['id']!r}; give an integer.", **where)
        elif entry["id"] in seen_ids:
            yield Problem(
                f"{name} uses the {singular} id {entry['id']} again; give every {singular} its own id.", **where
            )
        else:
            seen_ids.add(entry["id"])


def entry_message(entry: Any, section: str, form: AnnotationFormat) -> str | None:
    """Return why an entry of a section cannot be read, as a sentence without its subject, or None."""
    if not isinstance(entry, dict):
        return f"is a {type(entry).__name__}; an object is expected."
    missing = ", ".join(repr(key) for key in form.required_keys[section] if key not in entry)
    return f"has no {missing}; add it." if missing else None


def category_names(content: dict) -> dict[int, str]:
    """Return the name of each category that has an id, for messages."""
    return {number: category.get("name") for number, category in _with_id(content["categories"])}


def correct_holders(content: dict, form: AnnotationFormat) -> dict[int, dict | None]:
    """Return the videos or images by id, None for those that have problems."""
    holders: dict[int, dict | None] = {number: None for number, _ in _with_id(content[form.section])}
    for holder in _complete(content[form.section], form.section, form):
        if not any(holder_messages(holder, form)):
            holders[holder["id"]] = holder
    return holders


# Rules of a file: content


def content_problems(content: dict, form: AnnotationFormat, image_root: str | os.PathLike | None) -> Iterator[Problem]:
    """Find the problems inside well-formed entries. Entries with structural problems are skipped.

    Args:
        content: content of the file.
        form: format of the file.
        image_root: folder that file names are relative to; None does not check files.
    """
    entries = content.get(form.section)
    holders = {}
    for holder in _complete(entries if isinstance(entries, list) else [], form.section, form):
        if not any(holder_messages(holder, form)):
            holders[holder["id"]] = holder
            if image_root is not None:
                yield from _file_problems(holder, form, Path(image_root))
    annotations = content.get("annotations")
    if not annotations:
        yield Problem("The file has no annotations: it can be used for prediction, not for training or evaluation.")
    for annotation in _complete(annotations if isinstance(annotations, list) else [], "annotations", form):
        holder = holders.get(annotation[form.reference]) if is_integer(annotation[form.reference]) else None
        if holder is None or any(annotation_messages(annotation, holder, form)):
            continue
        for prefix, segmentation, box in _masks(annotation, form):
            message = mask_content_message(segmentation, box, (holder["height"], holder["width"]), form)
            if message is not None:
                yield Problem(prefix + message, **_place(annotation, form))


def _file_problems(holder: dict, form: AnnotationFormat, image_root: Path) -> Iterator[Problem]:
    is_video = form.holder == "video"
    names = holder["file_names"] if is_video else [holder["file_name"]]
    missing = [name for name in names if not (image_root / name).is_file()]
    if not missing:
        return
    first = image_root / missing[0]
    if is_video:
        message = (
            f"{len(missing)} of {holder['length']} frames are missing, the first is {first}; add the files or correct "
            "file_names or the image folder."
        )
    else:
        message = f"the file {first} is missing; add it or correct file_name or the image folder."
    yield Problem(message, **{form.reference: holder["id"]})


# Types


def is_integer(value: Any) -> bool:
    """Return whether a value is a whole number; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value is a real number; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_number_list(values: Any) -> bool:
    if not isinstance(values, list):
        return False
    is_plain = set(map(type, values)) <= {int, float}  # by far the quickest test, and enough for values from JSON
    return (is_plain or all(map(is_number, values))) and all(map(isfinite, values))


def _complete(entries: list, section: str, form: AnnotationFormat) -> Iterator[dict]:
    """Yield the entries that later rules can rely on."""
    for entry in entries:
        if entry_message(entry, section, form) is None and is_integer(entry["id"]):
            yield entry


def _with_id(entries: list) -> Iterator[tuple[int, dict]]:
    for entry in entries:
        if isinstance(entry, dict) and is_integer(entry.get("id")):
            yield entry["id"], entry


def _masks(annotation: dict, form: AnnotationFormat) -> Iterator[tuple[str, dict | list | None, list | None]]:
    """Yield the beginning of a message, segmentation and box: of an object in an image, or per frame of a track."""
    if form.holder == "image":
        yield "", annotation["segmentation"], annotation["bbox"]
        return
    segmentations = annotation["segmentations"]
    boxes = annotation["bboxes"] if "bboxes" in form.required_keys["annotations"] else [None] * len(segmentations)
    for frame, (segmentation, box) in enumerate(zip(segmentations, boxes, strict=True)):
        yield f"frame {frame}: ", segmentation, box


def _place(annotation: dict, form: AnnotationFormat) -> dict[str, Any]:
    return {form.reference: annotation[form.reference], "annotation_id": annotation["id"]}


def _shorten(names: Mapping[int, str]) -> str:
    """Return the ids and names of few categories, the range of the ids of many."""
    if len(names) <= 10:
        return ", ".join(f"{number} ({name})" for number, name in sorted(names.items()))
    return f"ids {min(names)} to {max(names)}"
