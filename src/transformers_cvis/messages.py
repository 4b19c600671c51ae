# SPDX-License-Identifier: Apache-2.0
"""Parts of messages that several rooms share."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a hint at the name that a user probably meant.

    Args:
        name: an unknown name.
        names: the known names.

    Returns:
        " Did you mean 'x'?" with the most similar of `names`, or "" if none of them is similar.
    """
    nearest = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
