# SPDX-License-Identifier: Apache-2.0
"""The source tree as data: modules, rooms and imports. Run it to print the import graph of the rooms.

python -m tests.support.source_tree            # rooms by floor, and the rooms that each imports
python -m tests.support.source_tree modeling   # the same for the folders and files of one room
"""

import ast
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGE = "transformers_cvis"
SOURCE = REPOSITORY / "src" / PACKAGE
COMMAND_LINE = REPOSITORY / "src" / f"{PACKAGE}_cli.py"


def module_name(path: Path) -> str:
    """Return the dotted name of a source file."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def source_modules() -> dict[str, Path]:
    """Return all modules of the package: dotted name to file."""
    return {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


@cache
def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Yield the full names of the modules that a file imports, anywhere in it."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from .. import kernels` imports a module, `from x import Class` does not
                name = f"{origin}.{alias.name}"
                yield name if name in source_modules() else origin


def room(module: str) -> str | None:
    """Return the room of a module, a folder or file directly in the package; None for the package and others."""
    parts = module.split(".")
    return parts[1] if parts[0] == PACKAGE and len(parts) > 1 else None


def import_graph(place: Callable[[str], str | None]) -> dict[str, set[str]]:
    """Return which places import which others.

    Args:
        place: gives the place of a module, or None where it has none.
    """
    graph: dict[str, set[str]] = {}
    for module, path in source_modules().items():
        if (own := place(module)) is None:
            continue
        targets = {place(name) for name in imports(path)} - {None, own}
        graph.setdefault(own, set()).update(targets)
    return graph


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """Return the floor of each place of a graph without circles: one above the highest place that it imports.

    Raises:
        ValueError: the graph has a circle; the message shows it.
    """
    found: dict[str, int] = {}

    def floor(name: str, path: tuple[str, ...]) -> int:
        if name in path:
            raise ValueError(f"circle: {' -> '.join([*path[path.index(name) :], name])}")
        if name not in found:
            found[name] = 1 + max((floor(target, (*path, name)) for target in graph.get(name, ())), default=-1)
        return found[name]

    for name in graph:
        floor(name, ())
    return found


def describe(graph: dict[str, set[str]]) -> str:
    """Return a graph as text, the highest floor first."""
    by_floor = floors(graph)
    lines = [f"{len(graph)} places, {max(by_floor.values()) + 1} floors, {sum(map(len, graph.values()))} arrows"]
    for number in sorted(set(by_floor.values()), reverse=True):
        for name in sorted(name for name, own in by_floor.items() if own == number):
            lines.append(f"{number}  {name:<24} -> {', '.join(sorted(graph.get(name, ()))) or '-'}")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Print the import graph of the rooms, or of the inside of one."""
    if not arguments:
        print(describe(import_graph(room)))
        return
    inside = f"{PACKAGE}.{arguments[0]}."
    print(
        describe(
            import_graph(lambda name: name.removeprefix(inside).split(".")[0] if name.startswith(inside) else None)
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
