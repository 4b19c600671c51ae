# SPDX-License-Identifier: Apache-2.0
"""Validation of an annotation file of YouTube-VIS or COCO format: its problems, told so that they can be mended."""

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

    A file with 'images' and without 'videos' is taken for COCO format.

    Args:
        json_path: the annotation file.
        image_root: the folder that the file names are relative to; None does not look for files.
        limit: how many problems to list.

    Returns:
        The problems, none if the file is fine.

    Raises:
        FileNotFoundError: the json, or `image_root`, does not exist.
    """
    return _validate(json_path, image_root, limit, None)


def validate_ytvis(
    json_path: str | os.PathLike, image_root: str | os.PathLike | None = None, limit: int = 20
) -> list[Problem]:
    """Like `validate_annotations`, but the file has to be of YouTube-VIS format."""
    return _validate(json_path, image_root, limit, YTVIS)


def _validate(
    json_path: str | os.PathLike, image_root: str | os.PathLike | None, limit: int, form: AnnotationFormat | None
) -> list[Problem]:
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
