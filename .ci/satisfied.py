# SPDX-License-Identifier: Apache-2.0
"""Exit with code 0 if this Python has all requirements of the package and its tests."""

import ast
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement


def setup_keyword(name: str) -> Any:
    """Return the value of a keyword of `setup()` in `setup.py`."""
    tree = ast.parse((Path(__file__).parent.parent / "setup.py").read_text(encoding="utf-8"))
    return next(
        ast.literal_eval(node.value) for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == name
    )


def satisfied(requirement: Requirement) -> bool:
    """Return whether a requirement is installed in a version that fits."""
    try:
        return requirement.specifier.contains(version(requirement.name), prereleases=True)
    except PackageNotFoundError:
        return False


requirements = setup_keyword("install_requires") + setup_keyword("extras_require")["test"]
python_fits = Requirement(f"python{setup_keyword('python_requires')}").specifier.contains(sys.version.split()[0])
sys.exit(not (python_fits and all(satisfied(Requirement(line)) for line in requirements)))
