# SPDX-License-Identifier: Apache-2.0
"""Trackers for `Accelerator(log_with=...)`."""

import json
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, get_available_trackers


class JsonLinesTracker(GeneralTracker):
    """Writes one JSON object per logged step to a file, for scripts and plots that need no tracking service.

    path: file, appended to. first_step: lines of later steps, left by a run that was interrupted after its last
        checkpoint, are removed, so that each step occurs once.
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
        return self.path

    def store_init_configuration(self, values: dict) -> None:
        """Called once, in the main process, before anything is logged. The configuration itself is in the summary."""
        kept = []
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["step"] <= self.first_step:
                        kept.append(line + "\n")
                except json.JSONDecodeError:  # the line that a kill cut in half
                    break
        self.path.write_text("".join(kept), encoding="utf-8")

    def log(self, values: dict, step: int | None = None, **kwargs: Any) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def resolve_trackers(names: list[str], output_dir: Path, first_step: int) -> list:
    """Names of a recipe -> what `Accelerator(log_with=...)` takes.

    Raises:
        ValueError: a tracker that is not installed; the message lists the installed ones.
    """
    installed = [str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()]
    if "auto" in names:
        names = [name for name in names if name != "auto"] + ["jsonl"] + ["tensorboard"] * ("tensorboard" in installed)
    trackers = []
    for name in dict.fromkeys(names):
        if name == "jsonl":
            trackers.append(JsonLinesTracker(output_dir / "training_log.jsonl", first_step))
        elif name in installed:
            trackers.append(name)
        else:
            raise ValueError(
                f"Tracker {name!r} is not installed; installed: {', '.join(['auto', 'jsonl', *installed])}."
            )
    return trackers
