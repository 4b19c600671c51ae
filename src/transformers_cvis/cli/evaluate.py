# SPDX-License-Identifier: Apache-2.0
"""Command `transformers-cvis evaluate`."""

import argparse
from pathlib import Path

from ..evaluation import GroundTruth, evaluate_ytvis, predict_dataset, write_submission
from ..files import write_json
from .common import check_new_files, load_model, writable_folder


def run_evaluate(options: argparse.Namespace) -> int:
    """Evaluate results, or a model, against a ground truth."""
    outputs = [Path(path).expanduser() for path in (options.json, options.submission) if path is not None]
    for path in outputs:
        writable_folder(path.parent)
    check_new_files(outputs, options.overwrite)
    ground_truth = GroundTruth.read(options.ground_truth)
    labelled = bool(ground_truth.annotations)
    if labelled or options.submission is None:
        ground_truth.check_annotations()
    results = options.results
    if results is None:
        model, video_processor = load_model(options)
        results = predict_dataset(
            model,
            video_processor,
            ground_truth,
            options.images,
            clip_length=options.clip_length,
            top_k=options.top_k,
            progress=True,
        )
    if options.submission is not None:
        write_submission(results, ground_truth, options.submission)
        if not labelled:
            print(f"{options.submission} is written; {options.ground_truth} has no annotations to measure against.")
            return 0
    evaluation = evaluate_ytvis(ground_truth, results)
    print(evaluation)
    if options.json is not None:
        per_category = {evaluation.categories[number]: values for number, values in evaluation.per_category.items()}
        write_json(Path(options.json).expanduser(), {"summary": evaluation.summary, "per_category": per_category})
    return 0
