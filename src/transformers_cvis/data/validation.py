# SPDX-License-Identifier: Apache-2.0
"""Validate an annotation file of YouTube-VIS or COCO format: list its problems so that they can be fixed."""

import os
from itertools import islice
from pathlib import Path

from ..ytvis_json import (
    COCO,
    YTVIS,
    AnnotationFormat,
    Problem,
    content_problems,
    read_annotation_json,
    structure_problems,
)


def validate_annotations(
    json_path: str | os.PathLike, image_root: str | os.PathLike | None = None, limit: int = 20
) -> list[Problem]:
    """Return the first `limit` problems of an annotation file of YouTube-VIS or COCO format.

    A file with 'images' and without 'videos' is checked as COCO format.

    Args:
        json_path: path of the annotation file.
        image_root: folder that the file names are relative to; None skips the check that the files exist.
        limit: largest number of problems to return.

    Returns:
        The problems; an empty list if the file is valid.

    Raises:
        FileNotFoundError: `json_path` or `image_root` does not exist.
    """
    return _validate(json_path, image_root, limit, None)


def validate_ytvis(
    json_path: str | os.PathLike, image_root: str | os.PathLike | None = None, limit: int = 20
) -> list[Problem]:
    """Return the problems of an annotation file, like [`validate_annotations`], but require YouTube-VIS format."""
    return _validate(json_path, image_root, limit, YTVIS)


def _validate(
    json_path: str | os.PathLike, image_root: str | os.PathLike | None, limit: int, form: AnnotationFormat | None
) -> list[Problem]:
    """Validate a file as `form`, or as the format that its sections suggest if `form` is None."""
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
        problems += islice(content_problems(content, form, image_root), limit - len(problems))
    return problems
