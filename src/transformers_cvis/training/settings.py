# SPDX-License-Identifier: Apache-2.0
"""Read nested dataclasses from YAML: files, overrides such as "key.key=value", checks, and a printed reference.

Recipes and schedules are such dataclasses. The help text of a field is its `metadata={"help": ...}`.
"""

import dataclasses
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml

from ..messages import check_choice, did_you_mean

_Settings = TypeVar("_Settings", bound="SettingsFile")


class SettingsFile:
    """Mixin for a dataclass that is a whole YAML file: a recipe or a schedule."""

    file_kind: ClassVar[str]
    """Noun for the file in messages, e.g. "recipe"."""
    shipped_files: ClassVar[Path]
    """Folder of the files that ship with the package."""

    @classmethod
    def load(cls: type[_Settings], source: "str | Path | _Settings", overrides: Iterable[str] = ()) -> _Settings:
        """Read the settings.

        Args:
            source: YAML file, the name of a file that ships with the package (e.g. the recipe "vita_moving_shapes" or
                the schedule "hvpl_r50_ytvis2019_20-2"), or settings to change.
            overrides: changes such as "seed=1" or "data.train.0.json=/data/train.json"; values are YAML.

        Raises:
            FileNotFoundError: if `source` is neither a file nor the name of a shipped one.
            ValueError: if a key is unknown or missing, or a value has the wrong type or is not allowed.
        """
        values = source.to_dict() if isinstance(source, cls) else read_yaml(source, cls.shipped_files, cls.file_kind)
        for override in overrides:
            apply_override(values, override)
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls: type[_Settings], values: dict) -> _Settings:
        """Build the settings from nested dictionaries, with the checks of [`load`]."""
        try:
            return convert(cls, values, where="")
        except ValueError as error:
            raise ValueError(f"{cls.__name__}: {error}") from error

    def to_dict(self) -> dict:
        """Return the settings as nested dictionaries of JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def read_yaml(source: str | Path, shipped: Path, kind: str) -> dict:
    """Read a mapping from a YAML file or from a file that ships with the package.

    Args:
        source: path of a YAML file, or the name of a file in `shipped`, without its suffix.
        shipped: folder of the files that ship with the package.
        kind: noun for the file in messages, e.g. "recipe".

    Returns:
        The mapping, with nested dictionaries and lists.

    Raises:
        FileNotFoundError: if `source` is neither a file nor the name of a shipped one.
        ValueError: if the file is not valid YAML, or not a mapping.
    """
    path = Path(source)
    if not path.is_file():
        path = shipped / f"{source}.yaml"
    if not path.is_file():
        names = sorted(path.stem for path in shipped.glob("*.yaml"))
        raise FileNotFoundError(f"No {kind} {str(source)!r}: give a YAML file or one of {', '.join(names)}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{kind.capitalize()} {path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"{kind.capitalize()} {path} must be a mapping of keys to values, got {type(values).__name__}."
        )
    return values


def describe_shipped(folder: Path) -> dict[str, str]:
    """Describe each YAML file of a folder by the first sentence of its leading comment.

    A reference in brackets at the end of the sentence is removed. A sentence of more than 100 characters loses its last
    clauses.

    Returns:
        Descriptions by file name, without the suffix.
    """
    descriptions = {}
    for path in sorted(folder.glob("*.yaml")):
        lines = takewhile(lambda line: line.startswith("# "), path.read_text(encoding="utf-8").splitlines())
        paragraph = " ".join(line.removeprefix("# ") for line in lines)
        sentence = re.split(r"\.(?: |$)", paragraph)[0]
        clauses = re.split("(?<=[,:]) ", re.sub(r" \([^()]*\)$", "", sentence))
        while len(" ".join(clauses)) > 100 and len(clauses) > 1:
            clauses.pop()
        descriptions[path.stem] = " ".join(clauses).rstrip(",:")
    return descriptions


def merge(values: dict, overrides: dict) -> dict:
    """Return `values` updated by `overrides`; nested dictionaries are merged key by key."""
    merged = dict(values)
    for key, override in overrides.items():
        both = isinstance(override, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], override) if both else override
    return merged


def apply_override(values: dict, override: str) -> None:
    """Set one "dotted.key=value" in nested dictionaries and lists, in place.

    Missing mappings are created. A single data source counts as a list of one, so its number 0 may be given or left
    out.

    Args:
        values: nested dictionaries and lists, as read from YAML.
        override: key and value, e.g. "data.train.0.json=/data/train.json"; the value is YAML.

    Raises:
        ValueError: if the override has no "=", or its key leads through a value or out of a list.
    """
    key, separator, text = override.partition("=")
    if not separator:
        raise ValueError(f"Override {override!r} must look like key=value, e.g. optimizer.learning_rate=1e-4.")
    *parents, last = key.strip().split(".")
    node: Any = values
    for position, parent in enumerate(parents):
        if isinstance(node, dict) and parent == "0" and position > 0:
            continue
        node = _unwrap_single(node, parent, override)
        if isinstance(node, dict) and node.get(parent) is None:
            node[parent] = {}
        node = node[int(parent) if isinstance(node, list) else parent]
        if not isinstance(node, (dict, list)):
            raise ValueError(f"Override {override!r}: {parent!r} is a value and does not have further keys.")
    node = _unwrap_single(node, last, override)
    node[int(last) if isinstance(node, list) else last] = yaml.safe_load(text)


def _unwrap_single(node: dict | list, key: str, override: str) -> dict | list:
    """Return the node that holds `key`: the entry of a list of one if the key is not a number, else `node`."""
    if isinstance(node, list) and len(node) == 1 and not key.isdigit():
        return node[0]
    if isinstance(node, list) and not (key.isdigit() and int(key) < len(node)):
        raise ValueError(f"Override {override!r}: {key!r} must be a number from 0 to {len(node) - 1}.")
    return node


def convert(expected: Any, value: Any, where: str) -> Any:
    """Convert a YAML value to the type of a field, and check it.

    Args:
        expected: annotation of the field: a dataclass, a builtin type, a `Literal`, a list, a tuple or a union.
        value: value as read from YAML.
        where: dotted key, for messages; "" at the top level.

    Returns:
        The value, of the annotated type.

    Raises:
        ValueError: if the value has another type, or a mapping has an unknown key or lacks a required one.
    """
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (types.UnionType, typing.Union):
        return _convert_union(arguments, value, where)
    if dataclasses.is_dataclass(expected):
        return _convert_dataclass(expected, value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or (arguments[-1] is not Ellipsis and len(value) != len(arguments)):
            raise ValueError(f"`{where}` must be a {type_name(expected)}, got {value!r}.")
        return tuple(convert(arguments[0], entry, f"{where}.{index}") for index, entry in enumerate(value))
    if origin is list:
        if isinstance(value, dict) and dataclasses.is_dataclass(arguments[0]):
            value = [value]  # a single data source needs no list
        if not isinstance(value, list):
            raise ValueError(f"`{where}` must be a list, got {value!r}.")
        return [convert(arguments[0], entry, f"{where}.{index}") for index, entry in enumerate(value)]
    if origin is Literal:
        if value is False and "no" in arguments:
            value = "no"  # YAML reads a bare `no` as False
        check_choice(where, value, arguments)
        return value
    if expected is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 5e-5 as a string
        except ValueError:
            pass
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ValueError(f"`{where}` must be of type {expected.__name__}, got {value!r}.")
    return value


def _convert_union(members: tuple, value: Any, where: str) -> Any:
    if value is None and type(None) in members:
        return None
    choices = [member for member in members if member is not type(None)]
    if len(choices) > 1:
        fitting = [choice for choice in choices if _fits(choice, value)]
        if not fitting and not isinstance(value, dict):
            raise ValueError(f"`{where}` must be of type {' or '.join(map(type_name, choices))}, got {value!r}.")
        choices = fitting or choices
    return convert(choices[0], value, where)


def _fits(choice: Any, value: Any) -> bool:
    """Return whether a value fits this member of a union, by its type, its keys or the allowed values."""
    if typing.get_origin(choice) is Literal:
        return value in typing.get_args(choice)
    if dataclasses.is_dataclass(choice) and isinstance(value, dict):
        return value.keys() <= {entry.name for entry in dataclasses.fields(choice)}
    return isinstance(value, choice)


def _convert_dataclass(expected: type, value: Any, where: str) -> Any:
    location = f"`{where}`" if where else "the top level"
    if not isinstance(value, dict):
        raise ValueError(f"{location} must be a mapping of keys to values, got {value!r}.")
    hints = typing.get_type_hints(expected)
    known = {entry.name: hints[entry.name] for entry in dataclasses.fields(expected)}
    for key in value:
        if key not in known:
            hint = did_you_mean(key, known) or f" The keys are {', '.join(known)}."
            raise ValueError(f"unknown key {key!r} at {location}.{hint}")
    for entry in dataclasses.fields(expected):
        if _is_required(entry) and entry.name not in value:
            raise ValueError(f"{location} lacks the required key {entry.name!r}.")
    prefix = f"{where}." if where else ""
    arguments = {key: convert(known[key], entry, f"{prefix}{key}") for key, entry in value.items()}
    try:
        return expected(**arguments)
    except ValueError as error:
        raise ValueError(f"{location}: {error}") from error


def _is_required(entry: dataclasses.Field) -> bool:
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING


# Reference


def describe_fields(settings_class: type, only: str = "") -> str:
    """Describe every field of nested dataclasses: dotted key, type, default and help.

    Args:
        settings_class: dataclass such as [`Recipe`] or [`Schedule`]. The keys of a list get the placeholder N, e.g.
            `data.train.N.json`.
        only: key of the field to describe, together with the fields below it, e.g. "optimizer" or "data.train"; ""
            describes all fields.

    Returns:
        Text with one entry per field, ending in a line break.

    Raises:
        ValueError: if no field has the key `only`.
    """
    entries = list(_describe(settings_class))
    kept = [text for key, text in entries if not only or f"{key}.".startswith(f"{only}.")]
    if not kept:
        hint = did_you_mean(only, [key for key, _ in entries])
        raise ValueError(f"{settings_class.__name__} does not have the field {only!r}.{hint}")
    return "\n".join(kept)


def _describe(settings_class: type, prefix: str = "", note: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted key and the description of every field; `note` follows the default."""
    hints = typing.get_type_hints(settings_class)
    for entry in dataclasses.fields(settings_class):
        key, hint = f"{prefix}{entry.name}", hints[entry.name]
        text = f"{key}: {type_name(hint)} ({_describe_default(entry)}{note})\n"
        if explanation := entry.metadata.get("help"):
            text += textwrap.fill(explanation, 100, initial_indent=" " * 4, subsequent_indent=" " * 4) + "\n"
        yield key, text
        alternatives = list(_nested_dataclasses(hint))
        for nested, step in alternatives:
            owner = f"; of {nested.__name__}" if len(alternatives) > 1 else ""
            yield from _describe(nested, f"{key}.{step}", owner)


def _describe_default(entry: dataclasses.Field) -> str:
    if _is_required(entry):
        return "required"
    value = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
    return f"default {type(value).__name__}" if dataclasses.is_dataclass(value) else f"default {json.dumps(value)}"


def _nested_dataclasses(hint: Any) -> Iterator[tuple[type, str]]:
    """Yield the dataclasses in an annotation, each with the part of the dotted key that leads to its fields."""
    if dataclasses.is_dataclass(hint):
        yield hint, ""
        return
    is_list = typing.get_origin(hint) is list
    if is_list or typing.get_origin(hint) in (types.UnionType, typing.Union):
        for member in typing.get_args(hint):
            yield from ((nested, f"N.{step}" if is_list else step) for nested, step in _nested_dataclasses(member))


def type_name(hint: Any) -> str:
    """Return the name of a type in messages and in the reference, e.g. "list of float or null"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(map(type_name, arguments))
    if origin is list or (origin is tuple and arguments[-1] is Ellipsis):
        return f"list of {type_name(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)} {type_name(arguments[0])}"
    return hint.__name__
