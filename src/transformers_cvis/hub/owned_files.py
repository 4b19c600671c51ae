# SPDX-License-Identifier: Apache-2.0
"""Ownership of the files of a revision: a push may delete only files that a part of the package has declared.

A revision may hold a whole model at one time and a task adapter at another. A push deletes the owned files of the
revision that it does not write itself. All other files of the revision stay.

The writers that `import transformers_cvis` always loads call [`declare_owned_files`]. The module that writes reports
may not be loaded in a pushing process, so a report carries its own declaration: `REPORT_FILE` lists the files of the
report in the revision, under the names that they had when they were written.
"""

import fnmatch
import json
import os
from collections.abc import Collection
from pathlib import Path

REPORT_FILE = "report.json"

_declared_patterns: set[str] = {REPORT_FILE}


def declare_owned_files(*patterns: str) -> None:
    """Declare files that the caller writes into revisions.

    Args:
        patterns: file names, or patterns of them as `fnmatch` reads them.
    """
    _declared_patterns.update(patterns)


def is_owned(name: str, files_of_report: Collection[str] = ()) -> bool:
    """Return whether a file of a revision belongs to a writer of the package.

    Args:
        name: path of the file in the repository.
        files_of_report: the files that the report of the revision has declared.
    """
    return name in files_of_report or any(fnmatch.fnmatchcase(name, pattern) for pattern in _declared_patterns)


def read_files_of_report(path: str | os.PathLike) -> list[str]:
    """Return the files that a report has declared in its `REPORT_FILE`.

    Args:
        path: path of the `REPORT_FILE`, a JSON object whose key "files" holds a list of names.

    Returns:
        The names. The list is empty if the file declares none, or is not a report of this package.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        return []
    names = content.get("files") if isinstance(content, dict) else None
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


__all__ = ["REPORT_FILE", "declare_owned_files", "is_owned", "read_files_of_report"]
