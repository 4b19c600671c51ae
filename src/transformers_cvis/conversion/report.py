# SPDX-License-Identifier: Apache-2.0
"""The report on a conversion: what became of every released tensor and of every weight of the model."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

LISTED_NAMES = 8  # of each list of names; names that differ in numbers alone count as one


@dataclass
class ConversionReport:
    """List what became of every name of a released state dict and of every weight of the model.

    Args:
        mapped: released name -> names in this package.
        ignored: released name -> why the model does not need the tensor.
        unknown: released names that no rule matches.
        missing: weights of the model that the checkpoint lacks; they are newly initialised.
        notes: sentences for the user.
    """

    mapped: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return the notes, the numbers of tensors, and lists of the names that are not mapped."""
        names_by_reason = defaultdict(list)
        for name, reason in self.ignored.items():
            names_by_reason[reason].append(name)
        counts = f"{len(self.mapped)} tensors mapped, {len(self.ignored)} ignored, {len(self.unknown)} unknown"
        counts += f"; {len(self.missing)} weights newly initialised." if self.missing else "."
        lines = [*self.notes, counts]
        for reason, names in names_by_reason.items():
            lines += [f"Ignored ({reason}):", *_listed(names)]
        if self.unknown:
            lines += ["Unknown, with no place in the model:", *_listed(self.unknown)]
        if self.missing:
            lines += ["Missing from the checkpoint, newly initialised:", *_listed(self.missing)]
        return "\n".join(lines)


class ConversionError(ValueError):
    """Raised if a checkpoint and a system do not fit each other.

    Attributes:
        report (`ConversionReport`): what would become of every tensor.
    """

    def __init__(self, message: str, report: ConversionReport) -> None:
        super().__init__(message)
        self.report = report


def _listed(names: Iterable[str]) -> Iterator[str]:
    """Yield a line for each group of names that differ in numbers alone, with `*` for the numbers."""
    groups = Counter(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names)
    for group, size in list(groups.items())[:LISTED_NAMES]:
        yield f"  {group}" + (f" ({size})" if size > 1 else "")
    if rest := list(groups.values())[LISTED_NAMES:]:
        yield f"  and {sum(rest)} more"
