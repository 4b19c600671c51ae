"""A whole training: recipe in, model folder out."""

import atexit
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import accelerate
import torch
import transformers
from accelerate.state import PartialState
from accelerate.utils import set_seed
from tqdm.auto import tqdm

from .. import __version__
from ..data import read_annotations
from ..hub.push import save_model
from ..modeling.auto import AutoModelForVideoInstanceSegmentation
from .build import build_collate, build_dataset, build_model, build_processor, keep_processor
from .checkpoints import TEMPORARY_SUFFIX, find_checkpoint
from .measure import evaluate_on_processes
from .recipe import Recipe
from .trainer import Trainer, check_precision, runs_on_cpu


def train(
    recipe: Recipe | str | Path,
    output_dir: str | Path | None = None,
    resume: str | Path = "auto",
    overrides: Iterable[str] = (),
) -> dict:
    """Train a model as a recipe says.

    Run it in one process, or in several under `accelerate launch` or `torchrun`; the recipe's batch size is the total.

    Args:
        recipe: a [`Recipe`], a YAML file, or the name of a recipe that ships with the package.
        output_dir: receives `checkpoints/`, `training_log.jsonl` and, at the end, the model with its processor, card
            and `training_summary.json`: a folder for `from_pretrained` and `push_to_hub`. By default the recipe's.
        resume: "auto" continues from the last checkpoint in `output_dir` if there is one, with the very numbers that
            an uninterrupted run gives; "restart" deletes them and starts afresh; or the path of a checkpoint to go on
            from.
        overrides: changes to the recipe, "key.key=value".

    Returns:
        The training summary.

    Raises:
        ValueError, OSError: recipe, data or checkpoints are not as they must be, or what the recipe starts from.
        FloatingPointError: a loss is not finite; the message names the videos.
    """
    recipe = Recipe.load(recipe, overrides)
    check_precision(recipe)
    output_dir = output_dir or recipe.output_dir
    if output_dir is None:
        raise ValueError("Give `output_dir`, in the call or in the recipe.")
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
        if PartialState().is_main_process:
            tqdm.write(f"Continuing from {checkpoint}.", file=sys.stderr)
    if recipe.model.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    processor = build_processor(recipe, None if checkpoint is None else checkpoint.parent)

    evaluate = None
    if recipe.data.valid is not None:
        valid = recipe.data.valid
        read_annotations(valid.json, valid.kind, valid.class_mapping)  # what is wrong there shows before the training

        def evaluate(model):
            return evaluate_on_processes(model, processor, valid, recipe.evaluation)

    trainer = Trainer(recipe, output_dir, model, dataset, build_collate(processor), evaluate, checkpoint)
    if trainer.accelerator.is_main_process:
        keep_processor(processor, trainer.checkpoint_dir)
    try:
        result = trainer.run()
        summary = summarise(recipe, result, trainer)
        if trainer.accelerator.is_main_process:
            save_model_folder(trainer.unwrapped_model, processor, output_dir, summary)
        trainer.accelerator.wait_for_everyone()
    finally:
        trainer.finish()
    return summary


def join_processes(on_cpu: bool) -> None:
    """Join the other processes of a distributed run, until the program ends: one program may train more than once."""
    if not torch.distributed.is_initialized():
        PartialState(cpu=on_cpu)
        atexit.register(_leave_processes)


def _leave_processes() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def summarise(recipe: Recipe, result: dict, trainer: Trainer) -> dict:
    """What `training_summary.json` holds: enough to repeat the training, and what it gave."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    processes = trainer.accelerator.num_processes
    if trainer.accelerator.device.type == "cuda":
        hardware = f"{processes} x {torch.cuda.get_device_name()}"
    else:
        hardware = f"{os.cpu_count()} CPU cores ({platform.processor() or platform.machine()})"
    return {
        **result,
        "dataset": recipe.data.valid.json if recipe.data.valid else None,
        "seed": recipe.seed,
        "command": command,
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


def save_model_folder(model, processor, output_dir: Path, summary: dict | None, **card) -> None:
    """Model, processor, card and, where there is one, the summary of the training. All is written to a temporary
    folder, then the files are moved in, the summary last: it says that all are there.

    Args:
        card: what else the card says, as for `save_model`.
    """
    temporary = output_dir / f"model{TEMPORARY_SUFFIX}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        save_model(model, processor, temporary, name=output_dir.name, training_summary=summary, **card)
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == "training_summary.json"):
            os.replace(path, output_dir / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
