# SPDX-License-Identifier: Apache-2.0
"""Measuring a model during training."""

import torch
from accelerate.state import PartialState
from accelerate.utils import gather_object

from ..data import read_annotations
from ..evaluation import evaluate_ytvis, predict_dataset
from ..processing import CvisVideoProcessor
from .recipe import EvaluationSettings, SourceSettings


def evaluate_on_processes(
    model: torch.nn.Module, processor: CvisVideoProcessor, source: SourceSettings, settings: EvaluationSettings
) -> dict[str, float]:
    """The 12 numbers of `model` on `source`; the videos are shared out over the processes of a distributed run. An
    image is evaluated as a video of one frame.

    Returns:
        Numbers by name in the main process, nothing in the others.
    """
    ground_truth = read_annotations(source.json, source.kind, source.class_mapping)
    results = predict_on_processes(model, processor, ground_truth, source.images, settings)
    return evaluate_ytvis(ground_truth, results).summary if PartialState().is_main_process else {}


def predict_on_processes(
    model: torch.nn.Module, processor: CvisVideoProcessor, ground_truth: dict, images: str, settings: EvaluationSettings
) -> list[dict]:
    """Tracks of all videos as `predict_dataset` gives them, in every process; the videos are shared out over them."""
    state = PartialState()
    share = {
        "videos": ground_truth["videos"][state.process_index :: state.num_processes],
        "categories": ground_truth["categories"],
    }
    results = predict_dataset(
        model,
        processor,
        share,
        images,
        clip_length=settings.clip_length,
        top_k=settings.top_k,
        progress=state.is_local_main_process,
    )
    return gather_object(results)
