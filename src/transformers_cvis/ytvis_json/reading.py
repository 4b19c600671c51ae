# SPDX-License-Identifier: Apache-2.0
"""Reading of annotation files, and the error for those that break their format."""

import json
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from .formats import AnnotationFormat, Problem

PROBLEMS_SHOWN = 5


def existing_file(path: str | os.PathLike) -> Path:
    """Return the path of an annotation file, with `~` expanded.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"The annotation file {path} does not exist.")
    return path


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not valid JSON.
    """
    path = existing_file(path)
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid json ({error}); is the file whole?") from error


def read_annotation_json(path: str | os.PathLike) -> dict:
    """Read an annotation file, and check that its top level is an object.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not valid JSON, or its top level is not an object.
    """
    content = read_json(path)
    check_top_level(content, str(path))
    return content


def check_top_level(content: Any, name: str) -> None:
    """Check that the content of an annotation file is an object.

    Args:
        content: content of the file.
        name: path of the file, for the message.

    Raises:
        ValueError: the content is not an object.
    """
    if not isinstance(content, dict):
        raise ValueError(
            f"{name} holds a {type(content).__name__} at its top level; an object with 'videos' (in COCO: 'images'), "
            "'categories' and 'annotations' is expected (a list is the format of predictions)."
        )


def refuse(problems: Iterable[Problem], name: str, form: AnnotationFormat) -> None:
    """Raise an error that lists the first few problems of a file, if it has any.

    Args:
        problems: problems that the rules found.
        name: path of the file, for the message.
        form: format of the file.

    Raises:
        ValueError: the file has problems. The message names the file, and video and annotation of each problem.
    """
    first = list(islice(problems, PROBLEMS_SHOWN))
    if first:
        listing = "\n".join(f"  - {problem}" for problem in first)
        raise ValueError(
            f"{name} breaks the {form.name} format:\n{listing}\n"
            "`transformers-cvis validate` lists all problems of a file."
        )
