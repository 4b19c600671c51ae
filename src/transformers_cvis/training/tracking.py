# SPDX-License-Identifier: Apache-2.0
"""Trackers of losses and metrics for Accelerate."""

import json
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, get_available_trackers


class JsonLinesTracker(GeneralTracker):
    """Write one JSON object per logged step to a file, for scripts and plots without a tracking service.

    Args:
        path: the file, to which lines are appended.
        first_step: step from which the run continues. Lines of later steps, left by a run that was interrupted after
            its last checkpoint, are removed, so that each step occurs once.
    """

    name = "jsonl"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, path: Path, first_step: int = 0) -> None:
        super().__init__()
        self.path = path
        self.first_step = first_step

    @property
    def tracker(self) -> Path:
        """The file."""
        return self.path

    def store_init_configuration(self, values: dict) -> None:
        """Remove old lines before the first log entry; `training_summary.json` has the configuration."""
        kept = []
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= self.first_step:
                        kept.append(line + "\n")
                except json.JSONDecodeError:  # half a line, if the process was killed while it wrote
                    break
        self.path.write_text("".join(kept), encoding="utf-8")

    def log(self, values: dict, step: int | None = None, **kwargs: Any) -> None:
        """Append the values of one step as a line."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def resolve_trackers(names: list[str], output_dir: Path, first_step: int) -> list[str | JsonLinesTracker]:
    """Return the trackers of a recipe in the form that `Accelerator(log_with=...)` takes.

    Args:
        names: `trackers` of the recipe.
        output_dir: folder of the run.
        first_step: step from which the run continues.

    Raises:
        ValueError: if a tracker is not installed; the message lists the installed ones.
    """
    installed = [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]
    if "auto" in names:
        names = [name for name in names if name != "auto"] + ["jsonl"] + ["tensorboard"] * ("tensorboard" in installed)
    trackers: list[str | JsonLinesTracker] = []
    for name in dict.fromkeys(names):
        if name == "jsonl":
            trackers.append(JsonLinesTracker(output_dir / "training_log.jsonl", first_step))
        elif name in installed:
            trackers.append(name)
        else:
            raise ValueError(
                f"`trackers`: {name!r} is not installed. Choose from {', '.join(['auto', 'jsonl', *installed])}."
            )
    return trackers
