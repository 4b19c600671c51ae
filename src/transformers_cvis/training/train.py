# SPDX-License-Identifier: Apache-2.0
"""Run a training from a recipe to a model folder."""

import atexit
import os
import platform
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from accelerate.state import PartialState
from accelerate.utils import set_seed
from transformers import PreTrainedModel
from transformers.utils import logging

from .._version import __version__
from ..data import read_annotations
from ..files import replace_files
from ..hub.card import TRAINING_SUMMARY_FILE, CardInfo, name_of_folder
from ..hub.push import save_model
from ..logs import silence_other_processes
from ..modeling.auto import AutoModelForVideoInstanceSegmentation
from ..processing import CvisVideoProcessor
from .build import build_collate, build_dataset, build_model, build_processor, keep_processor
from .callbacks import TrainingCallback, with_model_callbacks
from .checkpoint_files import find_checkpoint
from .measure import evaluate_on_processes
from .recipe import Recipe
from .trainer import Trainer, check_precision, runs_on_cpu

logger = logging.get_logger(__name__)

COMMAND = "transformers-cvis"
PACKAGE = Path(__file__).resolve().parents[1]


def train(
    recipe: Recipe | str | Path,
    output_dir: str | Path | None = None,
    resume: str | Path = "auto",
    overrides: Iterable[str] = (),
    callbacks: Iterable[TrainingCallback] = (),
) -> dict:
    """Train a model from a recipe.

    Run it in one process, or in several under `accelerate launch` or `torchrun`; the recipe's batch size is the total.

    Args:
        recipe: a [`Recipe`], a YAML file, or the name of a recipe that ships with the package.
        output_dir: folder of the run, by default that of the recipe. It receives `checkpoints/`, `training_log.jsonl`
            and, at the end, the model with its processor, card and `training_summary.json`, ready for
            `from_pretrained` and `push_to_hub`.
        resume: "auto" to continue from the last checkpoint in `output_dir`, if any, with the numbers of an
            uninterrupted run; "restart" to delete the checkpoints and start again; or the path of a checkpoint.
        overrides: changes to the recipe, "key.key=value".
        callbacks: callbacks to run in every step.

    Returns:
        The training summary.

    Raises:
        ValueError: if recipe, data, checkpoint and initial model do not fit together.
        OSError: if a file or model is missing or cannot be read or written.
        FloatingPointError: if a loss is not finite; the message names the videos.
    """
    recipe = Recipe.load(recipe, overrides)
    check_precision(recipe)
    output_dir = output_dir or recipe.output_dir
    if output_dir is None:
        raise ValueError("`output_dir` is missing: give it in the call or in the recipe.")
    output_dir = Path(output_dir)
    if recipe.num_threads is not None:
        torch.set_num_threads(recipe.num_threads)

    join_processes(runs_on_cpu(recipe.device))

    checkpoint = find_checkpoint(output_dir / "checkpoints", resume)
    dataset, names = build_dataset(recipe)
    set_seed(recipe.seed)
    if checkpoint is None:
        model = build_model(recipe, names)
    else:
        model = AutoModelForVideoInstanceSegmentation.from_pretrained(checkpoint)
        logger.info(f"Continuing from {checkpoint}.")
    if recipe.model.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    processor = build_processor(recipe, None if checkpoint is None else checkpoint.parent)

    evaluate = None
    if recipe.data.valid is not None:
        valid = recipe.data.valid
        read_annotations(valid.json, valid.kind, valid.class_mapping)  # report mistakes before the training

        def evaluate(model: Any) -> dict[str, float]:
            return evaluate_on_processes(model, processor, valid, recipe.evaluation)

    callbacks = with_model_callbacks(model, callbacks)
    trainer = Trainer(recipe, output_dir, model, dataset, build_collate(processor), evaluate, checkpoint, callbacks)
    if trainer.accelerator.is_main_process:
        keep_processor(processor, trainer.checkpoint_dir)
    try:
        result = trainer.train()
        summary = summarise(recipe, result, trainer)
        if trainer.accelerator.is_main_process:
            save_model_folder(trainer.unwrapped_model, processor, output_dir, CardInfo(training_summary=summary))
        trainer.accelerator.wait_for_everyone()
    finally:
        trainer.finish()
    return summary


def join_processes(on_cpu: bool) -> None:
    """Join the other processes of a distributed run until the program ends, since it may train more than once."""
    if not torch.distributed.is_initialized():
        silence_other_processes(PartialState(cpu=on_cpu).is_main_process)
        atexit.register(_leave_processes)


def _leave_processes() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def summarise(recipe: Recipe, result: dict, trainer: Trainer) -> dict:
    """Return the content of `training_summary.json`: the results of a training and the settings to repeat it."""
    processes = trainer.accelerator.num_processes
    if trainer.accelerator.device.type == "cuda":
        hardware = f"{processes} x {torch.cuda.get_device_name()}"
    else:
        hardware = f"{os.cpu_count()} CPU cores ({platform.processor() or platform.machine()})"
    return {
        **result,
        "dataset": recipe.data.valid.json if recipe.data.valid else None,
        "seed": recipe.seed,
        "command": command_line(),
        "hardware": hardware,
        "num_processes": processes,
        "num_parameters": sum(parameter.numel() for parameter in trainer.unwrapped_model.parameters()),
        "num_trained_parameters": sum(parameter.numel() for parameter in trainer.trained_parameters),
        "versions": {
            "python": platform.python_version(),
            "transformers_cvis": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
        },
        "recipe": recipe.to_dict(),
    }


def command_line() -> str:
    """Return the shell command that started this process.

    It starts with `transformers-cvis` for every way to start the command line of the package, and with the file name
    for other programs.
    """
    program = Path(sys.argv[0])
    ours = program.stem.replace("_", "-") in (COMMAND, f"{COMMAND}-cli") or PACKAGE in program.resolve().parents
    return shlex.join([COMMAND if ours else program.name, *sys.argv[1:]])


def save_model_folder(model: PreTrainedModel, processor: CvisVideoProcessor, output_dir: Path, card: CardInfo) -> None:
    """Write a model, its processor, its card and the training summary, if any, to a folder.

    The files are written to a temporary folder and then moved, the summary last, so its presence marks a complete
    folder.

    Args:
        model: the model to save.
        processor: its video processor.
        output_dir: folder for the files; files of the same name are replaced.
        card: further content of the model card.
    """
    with replace_files(output_dir, last=TRAINING_SUMMARY_FILE) as folder:
        save_model(model, processor, folder, card, name=name_of_folder(output_dir))
