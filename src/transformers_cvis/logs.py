# SPDX-License-Identifier: Apache-2.0
"""Messages and progress of the package.

Each module logs through `transformers.utils.logging.get_logger(__name__)`. The functions of that module
(`set_verbosity_error`, `disable_progress_bar`, ...) and `TRANSFORMERS_VERBOSITY` set what the package shows.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from transformers.utils import logging

PACKAGE = __name__.partition(".")[0]
SECONDS_BETWEEN_LINES = 30.0

logger = logging.get_logger(__name__)


def follow_transformers() -> None:
    """Give the messages of the package the level and the handlers of transformers.

    A logger takes both from the logger above it. Names decide which one that is, and by its name `transformers_cvis`
    does not lie below `transformers`.
    """
    logging.get_logger(PACKAGE).parent = logging.get_logger()


def silence_other_processes(is_main_process: bool) -> None:
    """Let only the main process of a distributed run show messages; errors are shown by all."""
    if not is_main_process:
        logging.get_logger(PACKAGE).setLevel(logging.ERROR)


def draws_progress_bars() -> bool:
    """Return whether a progress bar can be drawn: in a terminal or a notebook, but not into a file or a pipe."""
    return (sys.stderr is not None and sys.stderr.isatty()) or "ipykernel" in sys.modules


def progress_bar(iterable: Iterable | None = None, *, disable: bool = False, **settings: Any) -> Any:
    """Return a progress bar; where none can be drawn, an object that logs the progress now and then.

    Args:
        iterable: iterated over by the bar; None if the caller calls `update`.
        disable: show no progress at all.
        settings: of `tqdm`: `total`, `initial`, `desc`, `unit`.
    """
    if disable or draws_progress_bars():
        return logging.tqdm(iterable, disable=disable, **settings)
    return ProgressLines(iterable, **settings)


class ProgressLines:
    """Stands in for a progress bar of `tqdm` where standard error is not a terminal.

    Logs a line every half minute at level INFO, so a task that is done sooner logs nothing.

    Args:
        iterable: iterated over; None if the caller calls `update`.
        total: number of steps; None takes the length of `iterable` if it has one.
        initial: number of steps that were done before.
        desc: the task.
        unit: one step, in the singular.
    """

    def __init__(
        self,
        iterable: Iterable | None = None,
        total: int | None = None,
        initial: int = 0,
        desc: str = "progress",
        unit: str = "step",
    ) -> None:
        self.iterable, self.desc, self.unit = iterable, desc, unit
        self.total = len(iterable) if total is None and hasattr(iterable, "__len__") else total
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
        """Set the values that the next line ends with; `refresh` is for `tqdm`."""
        self.postfix = dict(values)

    def close(self) -> None:
        """Do nothing; a progress bar is closed here."""
