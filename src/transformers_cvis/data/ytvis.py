# SPDX-License-Identifier: Apache-2.0
"""Load YouTube-VIS, OVIS and COCO annotation files as memory-mapped `datasets.Dataset`s."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Literal

import datasets
from datasets.arrow_writer import ArrowWriter

from ..files import complete_file, sha256
from ..rle import from_run_lengths
from ..ytvis_json import existing_file
from .annotation_files import read_annotations
from .class_mapping import CLASS_MAPPINGS, ClassFilter

TABLE_VERSION = 2  # part of the cache key; raise it when the rows change
IMAGE_FOLDER = "JPEGImages"


def load_ytvis(
    json_path: str | os.PathLike,
    image_root: str | os.PathLike | None = None,
    *,
    labels: Sequence[str] | Mapping[int, str] | None = None,
    class_mapping: str | Mapping[str, str] | None = None,
    class_filter: ClassFilter | None = None,
    require_annotations: bool = True,
    cache_dir: str | os.PathLike | None = None,
) -> datasets.Dataset:
    """Load an annotation file of YouTube-VIS 2019/2021/2022 or OVIS format, one row per video.

    The json is parsed once. The rows are cached as an arrow file, whose name depends on the content of the json, the
    image folder and the other arguments, and are memory-mapped from there, also by the workers of a data loader. Frames
    stay on disk.

    Args:
        json_path: path of the annotation file.
        image_root: folder that `file_names` are relative to. None takes the first that exists of `JPEGImages` next to
            the json, `<name of the json>/JPEGImages` and `<name of the json>`.
        labels: class names of a model, as a list or as its `config.id2label`. Classes are matched by name and get the
            numbers of the model. With None, the number of a category is the rank of its id.
        class_mapping: from category names to class names; other categories are dropped. A mapping, or the name of one
            of `CLASS_MAPPINGS`. None takes the categories as classes.
        class_filter: selects videos and classes of a task after the mapping. None keeps all.
        require_annotations: refuse a file without annotations, such as the valid and test files of the benchmarks.
        cache_dir: folder of the arrow file; None takes the cache of `datasets`.

    Returns:
        A dataset with the columns `video_id` (int), `height` and `width` (pixels), `length` (frames), `file_names`
        (paths of the frames) and `annotations`, a list of dicts with

        - `id` and `category_id`, both of the json;
        - `label`, the class number; [`class_names`] gives the names;
        - `iscrowd`;
        - `segmentations`, for each frame the counts of a compressed RLE of size `(height, width)`, or None;
        - `polygons`, for each frame a list of `[x1, y1, x2, y2, ...]` in pixels, or None;
        - `boxes`, for each frame x, y, width, height in pixels, or None.

        A mask is stored as counts or as polygons, whichever the json has. A frame without box or without mask is None
        in all three.

    Raises:
        FileNotFoundError: the json, the image folder, or the first frame of a video is missing.
        ValueError: the json breaks the format, has no annotations, or has categories that `labels` lacks.
    """
    image_root = find_image_root(json_path) if image_root is None else Path(image_root)
    return _load_table(
        "videos", json_path, image_root, labels, class_mapping, class_filter, require_annotations, cache_dir
    )


def load_coco(
    json_path: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    labels: Sequence[str] | Mapping[int, str] | None = None,
    class_mapping: str | Mapping[str, str] | None = None,
    class_filter: ClassFilter | None = None,
    require_annotations: bool = True,
    cache_dir: str | os.PathLike | None = None,
) -> datasets.Dataset:
    """Load an annotation file of COCO format, one row per image, which is a video of one frame.

    A [`ClipDataset`] of these rows with a [`PseudoVideoAugmentation`] makes training clips. The rows are cached as
    [`load_ytvis`] does.

    Args:
        json_path: path of the annotation file.
        image_root: folder that each `file_name` is relative to.
        labels: class names of a model, see [`load_ytvis`].
        class_mapping: from category names to class names, see [`load_ytvis`].
        class_filter: selects images and classes of a task after the mapping. None keeps all.
        require_annotations: refuse a file without annotations.
        cache_dir: folder of the arrow file; None takes the cache of `datasets`.

    Returns:
        A dataset with the columns of [`load_ytvis`], with `image_id` in place of `video_id`.

    Raises:
        FileNotFoundError: the json, the image folder, or an image is missing.
        ValueError: the json breaks the format, has no annotations, or has categories that `labels` lacks.
    """
    return _load_table(
        "images", json_path, Path(image_root), labels, class_mapping, class_filter, require_annotations, cache_dir
    )


def _load_table(
    kind: Literal["videos", "images"],
    json_path: str | os.PathLike,
    image_root: Path,
    labels: Sequence[str] | Mapping[int, str] | None,
    class_mapping: str | Mapping[str, str] | None,
    class_filter: ClassFilter | None,
    require_annotations: bool,
    cache_dir: str | os.PathLike | None,
) -> datasets.Dataset:
    """Return the table of an annotation file from the cache, after writing it there if needed."""
    json_path = existing_file(json_path)
    content_hash = sha256(json_path)
    image_root = image_root.resolve()
    if not image_root.is_dir():
        raise FileNotFoundError(f"The image folder {image_root} does not exist; correct image_root.")
    if labels is not None:
        labels = [labels[index] for index in range(len(labels))]
    mapping = CLASS_MAPPINGS.get(class_mapping, {}) if isinstance(class_mapping, str) else class_mapping
    mapping_items = mapping and sorted(mapping.items(), key=str)
    rules = class_filter and astuple(class_filter)
    key_parts = [TABLE_VERSION, kind, content_hash, str(image_root), labels, mapping_items, rules, require_annotations]
    key = hashlib.sha256(json.dumps(key_parts).encode()).hexdigest()[:32]
    cache_dir = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "transformers_cvis_ytvis"
    table_path = cache_dir / f"{json_path.stem}-{key}.arrow"
    if not table_path.exists():
        content = read_annotations(json_path, kind, class_mapping, labels, class_filter)
        if require_annotations and not content.get("annotations"):
            if class_mapping is not None:
                raise ValueError(f"{json_path} has no annotation of a category that class_mapping keeps.")
            raise ValueError(
                f"{json_path} has no annotations. The valid and test files of the benchmarks come without: train and "
                "evaluate on a file with annotations (hold a part of train.json out), or pass "
                "require_annotations=False to predict only."
            )
        _write_table(content, kind, image_root, labels, json_path, table_path)
    dataset = datasets.Dataset.from_file(str(table_path))
    _check_first_frames(dataset, kind, image_root)
    return dataset


def class_names(dataset: datasets.Dataset) -> list[str]:
    """Return the names of the class numbers 0, 1, ... of a dataset made by [`load_ytvis`] or [`load_coco`]."""
    return dataset.features["annotations"].feature["label"].names


def find_image_root(json_path: str | os.PathLike) -> Path:
    """Find the folder of the frames in the usual places near an annotation file.

    Raises:
        FileNotFoundError: none of the usual places exists.
    """
    json_path = Path(json_path).resolve()
    candidates = [
        json_path.parent / IMAGE_FOLDER,
        json_path.parent / json_path.stem / IMAGE_FOLDER,
        json_path.parent / json_path.stem,
    ]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"No folder of frames found for {json_path}: looked for {', '.join(map(str, candidates))}. Give it as "
        "image_root."
    )


def _check_first_frames(dataset: datasets.Dataset, kind: str, image_root: Path) -> None:
    """Check that the first frame of every video or image exists."""
    holder = kind.removesuffix("s")
    for holder_id, file_names in zip(dataset[f"{holder}_id"][:], dataset["file_names"][:], strict=True):
        if not os.path.exists(file_names[0]):
            frame = "the frame " if kind == "videos" else ""
            raise FileNotFoundError(
                f"{holder} {holder_id}: {frame}{file_names[0]} does not exist. Is {image_root} the folder that the "
                "file names of the json are relative to?"
            )


def _write_table(
    content: dict, kind: str, image_root: Path, labels: list[str] | None, json_path: Path, table_path: Path
) -> None:
    """Write the rows of an annotation file as an arrow file.

    Raises:
        ValueError: a category is not in `labels`.
    """
    categories = sorted(content["categories"], key=lambda category: category["id"])
    names = [category["name"] for category in categories] if labels is None else labels
    unknown = [category["name"] for category in categories if category["name"] not in names]
    if unknown:
        raise ValueError(
            f"{json_path} has categories that are not labels of the model: {unknown}. The labels are {names}. Rename "
            "the categories, give a class_mapping from categories to labels (other categories are dropped), or make a "
            "model with these labels."
        )
    label_of_category = {category["id"]: names.index(category["name"]) for category in categories}
    table_path.parent.mkdir(parents=True, exist_ok=True)
    features = _features(names, kind)
    with (
        complete_file(table_path) as file,
        ArrowWriter(stream=file, features=features, writer_batch_size=100) as writer,
    ):
        for row in _rows(content, kind, image_root, label_of_category):
            writer.write(row)
        writer.finalize(close_stream=False)


def _features(names: list[str], kind: str) -> datasets.Features:
    """Describe the columns of a table for `datasets`."""
    annotation = {
        "id": datasets.Value("int64"),
        "category_id": datasets.Value("int64"),
        "label": datasets.ClassLabel(names=names),
        "iscrowd": datasets.Value("bool"),
        "segmentations": datasets.List(datasets.Value("string")),
        "polygons": datasets.List(datasets.List(datasets.List(datasets.Value("float64")))),
        "boxes": datasets.List(datasets.List(datasets.Value("float64"))),
    }
    return datasets.Features(
        {
            f"{kind.removesuffix('s')}_id": datasets.Value("int64"),
            "height": datasets.Value("int64"),
            "width": datasets.Value("int64"),
            "length": datasets.Value("int64"),
            "file_names": datasets.List(datasets.Value("string")),
            "annotations": datasets.List(annotation),
        }
    )


def _rows(content: dict, kind: str, image_root: Path, label_of_category: dict[int, int]) -> Iterator[dict]:
    """Yield the rows of a table."""
    annotations_of_video = defaultdict(list)
    for annotation in content.get("annotations") or []:
        annotations_of_video[annotation["video_id"]].append(annotation)
    for video in content["videos"]:
        rows = []
        for annotation in annotations_of_video[video["id"]]:
            masks = [
                _mask(segmentation, video["height"], video["width"]) if box else (None, None)
                for segmentation, box in zip(annotation["segmentations"], annotation["bboxes"], strict=True)
            ]
            boxes = [
                None if mask == (None, None) else [float(value) for value in box]
                for mask, box in zip(masks, annotation["bboxes"], strict=True)
            ]
            rows.append(
                {
                    "id": annotation["id"],
                    "category_id": annotation["category_id"],
                    "label": label_of_category[annotation["category_id"]],
                    "iscrowd": bool(annotation.get("iscrowd", 0)),
                    "segmentations": [counts for counts, _ in masks],
                    "polygons": [polygons for _, polygons in masks],
                    "boxes": boxes,
                }
            )
        yield {
            f"{kind.removesuffix('s')}_id": video["id"],
            "height": video["height"],
            "width": video["width"],
            "length": len(video["file_names"]),
            "file_names": [os.path.join(image_root, name) for name in video["file_names"]],
            "annotations": rows,
        }


def _mask(segmentation: dict | list | None, height: int, width: int) -> tuple[str | None, list[list[float]] | None]:
    """Return a segmentation as the counts of a compressed RLE or as polygons; both are None for an empty one.

    Polygons with less than 6 or an odd number of coordinates are dropped.
    """
    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0]
        return None, polygons or None
    if not segmentation:
        return None, None
    counts = segmentation["counts"]
    if isinstance(counts, list):
        counts = from_run_lengths([counts], (height, width))[0]["counts"]
    return counts, None
