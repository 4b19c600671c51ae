# SPDX-License-Identifier: Apache-2.0
"""Command `transformers-cvis convert`."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import yaml

from transformers_cvis_cli import CommandError

from ..conversion import ConversionError, convert_checkpoint
from ..files import write_json
from .common import writable_folder


def run_convert(options: argparse.Namespace) -> int:
    """Convert a released checkpoint, and print a report on every tensor."""
    settings = {}
    for override in options.overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise CommandError(f"--set {override}: must look like KEY=VALUE, e.g. clip_length=3.")
        settings[key] = yaml.safe_load(value)
    report_path = Path(options.report).expanduser() if options.report is not None else None
    if report_path is not None:
        writable_folder(report_path.parent)
    failure = None
    try:
        report = convert_checkpoint(
            options.source,
            options.out,
            options.system,
            class_names=read_class_names(options.classes) if options.classes is not None else None,
            task=options.task,
            settings=settings,
            short_side=options.short_side,
            allow_missing=options.allow_missing,
            license=options.license,
        )
    except ConversionError as error:
        failure, report = error, error.report
    print(report, file=sys.stderr if failure else sys.stdout)
    if report_path is not None:
        write_json(report_path, {"source": options.source, "system": options.system, **dataclasses.asdict(report)})
    if failure:
        raise failure
    print(f"Model: {options.out}")
    return 0


def read_class_names(path: str) -> list[str]:
    """Read class names in label order, from a YouTube-VIS JSON (by rising category id) or a text file (by line).

    Raises:
        CommandError: the JSON has no categories.
        OSError: the file cannot be read.
    """
    text = Path(path).expanduser().read_text(encoding="utf-8")
    if not path.endswith(".json"):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        categories = json.loads(text)["categories"]
        return [category["name"] for category in sorted(categories, key=lambda category: category["id"])]
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{path} is not a YouTube-VIS JSON: it needs 'categories'.") from error
