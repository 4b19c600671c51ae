# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments and hints for error messages, with one wording for the whole package."""

import difflib
from collections.abc import Collection, Iterable
from typing import Any


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Suggest the known name nearest to an unknown one, at the end of an error message.

    Args:
        name: unknown name. Upper and lower case count as the same.
        names: known names.

    Returns:
        " Did you mean 'nearest'?", with a leading space, or "" if no name is near.

    Example:
    ```python
    >>> from transformers_cvis.messages import did_you_mean

    >>> did_you_mean("hvlp", ["crisp", "genvis", "hvpl"])
    " Did you mean 'hvpl'?"

    ```
    """
    spelling = {str(known).lower(): str(known) for known in names}
    nearest = difflib.get_close_matches(str(name).lower(), spelling, n=1, cutoff=0.5)
    return f" Did you mean {spelling[nearest[0]]!r}?" if nearest else ""


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Check that a value is one of the allowed values.

    Args:
        name: argument or field, for the message.
        value: value to check.
        choices: allowed values.

    Raises:
        ValueError: `value` is not one of `choices`. The message lists them.
    """
    if value not in choices:
        hint = did_you_mean(value, [choice for choice in choices if isinstance(choice, str)])
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.{hint}")


def check_at_least(name: str, value: float, least: float, unit: str = "") -> None:
    """Check that a number is not too small.

    Args:
        name: argument or field, for the message.
        value: value to check.
        least: smallest allowed value.
        unit: unit of the value, such as "frames"; empty for a bare number.

    Raises:
        ValueError: `value` is below `least`, or not a number.
    """
    if not value >= least:
        raise ValueError(f"`{name}` must be at least {least}{unit and f' {unit}'}, got {value!r}.")
