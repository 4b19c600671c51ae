# SPDX-License-Identifier: Apache-2.0
"""Checks and hints whose wording the whole package shares."""

import difflib
from collections.abc import Collection, Iterable
from typing import Any


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a hint at the known name that is nearest to an unknown one, to be appended to an error message.

    Args:
        name: the name that nobody knows. Upper and lower case count as the same.
        names: the known names.

    Returns:
        " Did you mean 'nearest'?", with a leading space, or "" if no name is near.
    """
    spelling = {str(known).lower(): str(known) for known in names}
    nearest = difflib.get_close_matches(str(name).lower(), spelling, n=1, cutoff=0.5)
    return f" Did you mean {spelling[nearest[0]]!r}?" if nearest else ""


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Check that a value is one of those allowed.

    Args:
        name: the argument or field, as the message gives it.
        value: its value.
        choices: the allowed values.

    Raises:
        ValueError: `value` is not one of `choices`; the message lists them.
    """
    if value not in choices:
        hint = did_you_mean(value, [choice for choice in choices if isinstance(choice, str)])
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.{hint}")


def check_at_least(name: str, value: float, least: float, unit: str = "") -> None:
    """Check that a number is not too small.

    Args:
        name: the argument or field, as the message gives it.
        value: its value.
        least: the smallest allowed value.
        unit: what is counted or measured, such as "frames"; empty for a bare number.

    Raises:
        ValueError: `value` is below `least`, or not a number.
    """
    if not value >= least:
        raise ValueError(f"`{name}` must be at least {least}{unit and f' {unit}'}, got {value!r}.")
