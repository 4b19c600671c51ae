# SPDX-License-Identifier: Apache-2.0
"""Commands `transformers-cvis train` and `transformers-cvis train-continual`."""

import argparse
import os
from pathlib import Path

from transformers.utils import logging

from ..continual import Schedule, train_continual
from ..continual.schedule import SCHEDULES_DIRECTORY
from ..training import Recipe, train
from ..training.recipe import RECIPES_DIRECTORY
from ..training.settings import describe_fields, describe_shipped
from .common import writable_folder

logger = logging.get_logger(__name__)


def run_train(options: argparse.Namespace) -> int:
    """Train a model from a recipe, and print its metrics."""
    if options.fields is not None:
        print(describe_fields(Recipe, options.fields), end="")
        return 0
    if options.list:
        print_shipped(RECIPES_DIRECTORY)
        return 0
    if options.out is not None:
        writable_folder(options.out)
    summary = train(options.recipe, options.out, resume=options.resume, overrides=options.overrides)
    for name, value in summary["metrics"].items():
        print(f"{name} {value:.4f}")
    return 0


def run_train_continual(options: argparse.Namespace) -> int:
    """Train a model task by task from a schedule, and print the report."""
    if options.fields is not None:
        print(describe_fields(Schedule, options.fields), end="")
        return 0
    if options.list:
        print_shipped(SCHEDULES_DIRECTORY)
        return 0
    if options.out is not None:
        writable_folder(options.out)
    report = train_continual(options.schedule, options.out, resume=options.resume, overrides=options.overrides)
    print(report.to_markdown(), end="")
    return 0


def print_shipped(folder: Path) -> None:
    """Print name and description of each YAML file of a folder, one per line."""
    descriptions = describe_shipped(folder)
    width = max(map(len, descriptions))
    for name, description in descriptions.items():
        print(f"{name:<{width}}  {description}")
    logger.info(f"The files are in {folder}{os.sep}")
