# SPDX-License-Identifier: Apache-2.0
"""Reading annotation files, and refusing those that break their format."""

import json
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from .formats import AnnotationFormat, Problem

PROBLEMS_SHOWN = 5


def existing_file(path: str | os.PathLike) -> Path:
    """Return the path of an annotation file, `~` replaced.

    Raises:
        FileNotFoundError: it does not exist.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"The annotation file {path} does not exist.")
    return path


def read_json(path: str | os.PathLike) -> Any:
    """Return the content of a json file.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is not valid json.
    """
    path = existing_file(path)
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid json ({error}); is the file whole?") from error


def read_annotation_json(path: str | os.PathLike) -> dict:
    """Return the content of an annotation file, of which only the top level is checked.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is not valid json, or its top level is not an object.
    """
    content = read_json(path)
    check_top_level(content, str(path))
    return content


def check_top_level(content: Any, name: str) -> None:
    """Check that the content of an annotation file is an object.

    Args:
        content: of the file.
        name: its path, for the message.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(content, dict):
        raise ValueError(
            f"{name} holds a {type(content).__name__} at its top level; an object with 'videos' (of COCO: 'images'), "
            "'categories' and 'annotations' is expected (a list is the format of predictions)."
        )


def refuse(problems: Iterable[Problem], name: str, form: AnnotationFormat) -> None:
    """Raise an error that lists the first few problems of a file, if it has any.

    Args:
        problems: as the rules find them.
        name: the path of the file, for the message.
        form: its format.

    Raises:
        ValueError: it has problems; the message names the file, and of each problem the video and annotation.
    """
    first = list(islice(problems, PROBLEMS_SHOWN))
    if first:
        listing = "\n".join(f"  - {problem}" for problem in first)
        raise ValueError(
            f"{name} breaks the {form.name} format:\n{listing}\n"
            "`transformers-cvis validate` lists all problems of a file."
        )
