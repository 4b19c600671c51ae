# SPDX-License-Identifier: Apache-2.0
"""Messages and progress of the package.

Each module logs through `transformers.utils.logging.get_logger(__name__)`. The functions of that module
(`set_verbosity_error`, `disable_progress_bar`, ...) and `TRANSFORMERS_VERBOSITY` set what the package shows.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

from transformers.utils import logging

PACKAGE = __name__.partition(".")[0]
SECONDS_BETWEEN_LINES = 30.0

logger = logging.get_logger(__name__)


def follow_transformers() -> None:
    """Give the messages of the package the level and the handlers of transformers.

    A logger inherits both from its parent. By its name, the logger `transformers_cvis` is not a child of
    `transformers`, so its parent is set here.
    """
    package: Any = logging.get_logger(PACKAGE)
    package.parent = logging.get_logger()


def silence_other_processes(is_main_process: bool) -> None:
    """Show messages of the main process of a distributed run only, and errors of all processes."""
    if not is_main_process:
        logging.get_logger(PACKAGE).setLevel(logging.ERROR)


def draws_progress_bars() -> bool:
    """Return whether progress bars can be drawn: in a terminal or a notebook, not in a file or a pipe."""
    return (sys.stderr is not None and sys.stderr.isatty()) or "ipykernel" in sys.modules


def progress_bar(iterable: Iterable | None = None, *, disable: bool = False, **settings: Any) -> Any:
    """Return a progress bar, or an object that logs the progress if bars cannot be drawn.

    Args:
        iterable: items that the bar iterates over; None if the caller calls `update`.
        disable: show no progress.
        settings: `total`, `initial`, `desc` and `unit` of `tqdm`.
    """
    if disable or draws_progress_bars():
        return logging.tqdm(iterable, disable=disable, **settings)
    return ProgressLines(iterable, **settings)


class ProgressLines:
    """Progress as log lines, with the interface of a `tqdm` bar, for runs without a terminal.

    It logs a line every half minute at level INFO. A shorter task logs nothing.

    Args:
        iterable: items to iterate over; None if the caller calls `update`.
        total: number of steps; None takes the length of `iterable`, if it has one.
        initial: number of steps done before.
        desc: name of the task.
        unit: name of one step, in the singular.
    """

    def __init__(
        self,
        iterable: Iterable | None = None,
        total: int | None = None,
        initial: int = 0,
        desc: str = "progress",
        unit: str = "step",
    ) -> None:
        self.iterable: Iterable = () if iterable is None else iterable
        self.desc, self.unit = desc, unit
        self.total = len(iterable) if total is None and isinstance(iterable, Sized) else total
        self.count = initial
        self.postfix: dict[str, str] = {}
        self.started = self.last_line = time.monotonic()

    def __iter__(self) -> Iterator:
        for item in self.iterable:
            yield item
            self.update()

    def __enter__(self) -> "ProgressLines":
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        """Count further steps."""
        self.count += count
        now = time.monotonic()
        if now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            of_total = "" if self.total is None else f" of {self.total}"
            values = "".join(f", {name} {value}" for name, value in self.postfix.items())
            logger.info(f"{self.desc}: {self.count}{of_total} {self.unit}s, {now - self.started:.0f} s{values}")

    def set_postfix(self, values: Mapping[str, str], refresh: bool = True) -> None:
        """Set the values at the end of the next line. `refresh` has no effect; `tqdm` has it."""
        self.postfix = dict(values)

    def close(self) -> None:
        """Do nothing. A `tqdm` bar needs to be closed."""
