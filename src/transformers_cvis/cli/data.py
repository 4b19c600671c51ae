# SPDX-License-Identifier: Apache-2.0
"""Commands `transformers-cvis validate`, `import-data`, `split-data` and `make-data`."""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from transformers_cvis_cli import CommandError

from ..data import (
    SHAPES,
    make_moving_shapes,
    read_annotations,
    read_mask_folders,
    split_annotations,
    split_ytvis,
    validate_annotations,
)
from ..files import write_json
from .common import check_new_files, writable_folder


def run_validate(options: argparse.Namespace) -> int:
    """List the problems of an annotation file; the exit code is 1 if it has any."""
    problems = validate_annotations(options.json, options.images, limit=options.limit)
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{options.json}: no problem found")
    elif len(problems) == options.limit:
        print(f"... stopped after {options.limit} problems; there may be more")
    return 1 if problems else 0


def run_import_data(options: argparse.Namespace) -> int:
    """Convert a data set to YouTube-VIS JSON."""
    outputs = [Path(path).expanduser() for path in (options.out, options.valid) if path is not None]
    for path in outputs:
        writable_folder(path.parent)
    check_new_files(outputs, options.overwrite)
    contents: Sequence[dict]
    if options.kind == "coco":
        contents = [read_annotations(options.source, kind="images")]
    else:
        content = read_mask_folders(options.frames, options.source, options.classes, progress=True)
        contents = [content] if options.valid is None else split_annotations(content)
    for path, content in zip(outputs, contents, strict=True):
        write_json(path, content)
        print(f"{path}: {describe_annotations(content)}")
    return 0


def run_split_data(options: argparse.Namespace) -> int:
    """Split an annotation file by videos into two files."""
    folder = writable_folder(options.out)
    check_new_files([folder / f"{name}_split.json" for name in ("train", "test")], options.overwrite)
    for path in split_ytvis(options.json, folder, options.test_share, options.seed):
        print(f"{path}: {describe_annotations(json.loads(path.read_text(encoding='utf-8')))}")
    return 0


def run_make_data(options: argparse.Namespace) -> int:
    """Generate a data set."""
    if options.categories is not None and options.categories > len(SHAPES):
        raise CommandError(f"--categories {options.categories}: give at most {len(SHAPES)}, the number of shapes.")
    folder = make_moving_shapes(
        options.folder,
        num_train_videos=options.train_videos,
        num_valid_videos=options.valid_videos,
        num_frames=options.frames,
        size=options.size,
        seed=options.seed,
        categories=list(SHAPES)[: options.categories],
        background_dir=options.backgrounds,
        write_mp4=options.mp4,
        progress=True,
    )
    print(folder)
    return 0


def describe_annotations(content: dict) -> str:
    """Describe a YouTube-VIS JSON in one line: its numbers of videos, of frames, and of objects of each category."""
    counts = Counter(annotation["category_id"] for annotation in content["annotations"])
    categories = ", ".join(f"{category['name']} {counts[category['id']]}" for category in content["categories"])
    frames = sum(video["length"] for video in content["videos"])
    return f"{len(content['videos'])} videos, {frames} frames; objects: {categories}"
