# SPDX-License-Identifier: Apache-2.0
"""The reference printed from the fields of recipes and schedules."""

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import pytest

from transformers_cvis.continual import Schedule
from transformers_cvis.continual.distilling_model import DistillationSettings
from transformers_cvis.training import Recipe
from transformers_cvis.training.settings import describe_fields


@dataclass
class Wheel:
    """Part of the example."""

    size: float = field(default=0.5, metadata={"help": "Diameter, in metres."})


@dataclass
class Sail:
    """Another part of the example."""

    size: int = field(metadata={"help": "Area, in square metres."})


@dataclass
class Vehicle:
    """The example."""

    name: str = field(metadata={"help": "Name of the vehicle, " + "very " * 30 + "long."})
    wheels: list[Wheel] = field(default_factory=list, metadata={"help": "Its wheels."})
    drive: Wheel | Sail | None = field(default_factory=Wheel)
    colour: Literal["red", "green"] | None = field(default=None, metadata={"help": "null is unpainted."})
    window: tuple[int, int] = field(default=(1, 2), metadata={"help": "Smallest and largest."})


def test_every_field_has_its_key_type_default_and_help():
    entries = describe_fields(Vehicle).split("\n\n")
    assert entries[0].startswith("name: str (required)\n    Name of the vehicle, very very")
    assert all(len(line) <= 100 for line in entries[0].splitlines())
    assert len(entries[0].splitlines()) == 3
    assert entries[1:] == [
        "wheels: list of Wheel (default [])\n    Its wheels.",
        "wheels.N.size: float (default 0.5)\n    Diameter, in metres.",
        "drive: Wheel or Sail or null (default Wheel)",
        "drive.size: float (default 0.5; of Wheel)\n    Diameter, in metres.",
        "drive.size: int (required; of Sail)\n    Area, in square metres.",
        "colour: 'red' or 'green' or null (default null)\n    null is unpainted.",
        "window: list of 2 int (default [1, 2])\n    Smallest and largest.\n",
    ]


def test_fields_below_a_key():
    assert describe_fields(Vehicle, "wheels").count("\n\n") == 1
    assert describe_fields(Vehicle, "window").startswith("window: ")
    with pytest.raises(ValueError, match="Vehicle does not have the field 'window.size'. Did you mean 'window'"):
        describe_fields(Vehicle, "window.size")


def dataclasses_in(hint) -> Iterator[type]:
    """Return all dataclasses in a type, at any depth."""
    if dataclasses.is_dataclass(hint):
        yield hint
        for nested in typing.get_type_hints(hint).values():
            yield from dataclasses_in(nested)
    for argument in typing.get_args(hint):
        yield from dataclasses_in(argument)


@pytest.mark.parametrize("settings", [Recipe, Schedule, DistillationSettings])
def test_every_field_of_recipes_and_schedules_has_help(settings):
    for part in dataclasses_in(settings):
        for entry in dataclasses.fields(part):
            explanation = entry.metadata.get("help", "")
            assert explanation.endswith("."), f"{part.__name__}.{entry.name}"
        assert part.__doc__
        assert not part.__doc__.startswith(f"{part.__name__}(")
    assert describe_fields(settings)
