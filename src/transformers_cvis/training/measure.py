# SPDX-License-Identifier: Apache-2.0
"""Evaluate a model during training, on all processes of a distributed run."""

from accelerate.state import PartialState
from accelerate.utils import gather_object

from ..data import read_annotations
from ..evaluation import evaluate_ytvis, predict_dataset
from ..processing import CvisVideoProcessor
from ..processing.protocols import VideoModel
from .recipe import EvaluationSettings, SourceSettings


def evaluate_on_processes(
    model: VideoModel, processor: CvisVideoProcessor, source: SourceSettings, settings: EvaluationSettings
) -> dict[str, float]:
    """Compute the 12 metrics of a model on a data source, with the videos divided among the processes.

    An image is evaluated as a video of one frame.

    Args:
        model: the model.
        processor: its video processor.
        source: the evaluation data.
        settings: clip length and number of tracks.

    Returns:
        Metrics by name in the main process, an empty dictionary in the others.
    """
    ground_truth = read_annotations(source.json, source.kind, source.class_mapping)
    results = predict_on_processes(model, processor, ground_truth, source.images, settings)
    return evaluate_ytvis(ground_truth, results).summary if PartialState().is_main_process else {}


def predict_on_processes(
    model: VideoModel, processor: CvisVideoProcessor, ground_truth: dict, images: str, settings: EvaluationSettings
) -> list[dict]:
    """Predict the tracks of all videos with `predict_dataset`, with the videos divided among the processes.

    Args:
        model: the model.
        processor: its video processor.
        ground_truth: content of an annotation file, of which `videos` and `categories` are used.
        images: folder of the frames.
        settings: clip length and number of tracks.

    Returns:
        The tracks of all videos, in every process.
    """
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
