# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints: everything a run needs to continue bit for bit, written atomically and without pickle.

A checkpoint is a folder `step-00001000`:

    config.json, model.safetensors   the model, as `save_pretrained` writes it: `from_pretrained(folder)` works
    optimizer.safetensors            AdamW moments, named by parameter
    random_states_{rank}.safetensors / .json    generators of Python, NumPy and torch, one pair per process
    trainer_state.json               step, gradient scaler, recipe, seconds spent
"""

import json
import random
import re
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ..files import discard_folder, finish_folder, write_json

CHECKPOINT_NAME = re.compile(r"step-(\d{8})")
STATE_FILE = "trainer_state.json"


def checkpoint_path(directory: Path, step: int) -> Path:
    return directory / f"step-{step:08d}"


def list_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints below `directory`, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if CHECKPOINT_NAME.fullmatch(path.name) and path.is_dir())


def find_checkpoint(directory: Path, resume: str | Path) -> Path | None:
    """The checkpoint that a run starts from.

    Args:
        directory: where the run's checkpoints are.
        resume: "auto" takes the last complete checkpoint, if there is one; "restart" none; anything else is the path
            of a checkpoint.

    Raises:
        FileNotFoundError: `resume` is a path without a checkpoint.
    """
    if resume == "restart":
        return None
    if resume == "auto":
        return next(reversed(list_checkpoints(directory)), None)
    if not (Path(resume) / STATE_FILE).is_file():
        raise FileNotFoundError(f"{resume} is not a checkpoint: it has no {STATE_FILE}.")
    return Path(resume)


def commit(path: Path, keep: int) -> None:
    """Make the checkpoint that was written to `incomplete_path(path)` visible, and delete all but the last `keep`."""
    finish_folder(path)
    for old in list_checkpoints(path.parent)[:-keep]:
        discard_folder(old)


def remove_later(directory: Path, step: int) -> None:
    """Delete the checkpoints after `step`, from where another run now goes its own way."""
    for path in list_checkpoints(directory):
        if path.name > checkpoint_path(directory, step).name:
            discard_folder(path)


def save_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Save the optimiser's state; its groups carry `parameter_names` (see `optimization.parameter_groups`)."""
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["parameter_names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{name}/{key}"] = value.contiguous()
    save_file(tensors, path)


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Restore what [`save_optimizer`] wrote into an optimiser over the same parameters.

    Raises:
        ValueError: the file has state of a parameter that this optimiser does not train.
    """
    parameters = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["parameter_names"], group["params"], strict=True)
    }
    for full_key, value in load_file(path).items():
        name, key = full_key.rsplit("/", 1)
        if name not in parameters:
            raise ValueError(f"{path} has state of {name!r}, which this run does not train: was the recipe changed?")
        # AdamW keeps its step counters on the CPU unless it is fused or capturable.
        device = torch.device("cpu") if key == "step" else parameters[name].device
        optimizer.state[parameters[name]][key] = value.to(device)


def capture_random_states() -> dict:
    """States of the global generators of Python, NumPy, torch and the current GPU."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: dict) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def save_random_states(directory: Path, rank: int) -> None:
    states = capture_random_states()
    algorithm, numpy_words, position, has_gauss, cached_gaussian = states["numpy"]
    version, python_words, gauss_next = states["python"]
    tensors = {
        "python": torch.tensor(python_words, dtype=torch.int64),
        "numpy": torch.from_numpy(numpy_words.astype(np.int64)),
        "torch": states["torch"],
    }
    if "cuda" in states:
        tensors["cuda"] = states["cuda"]
    save_file(tensors, directory / f"random_states_{rank}.safetensors")
    scalars = {"python": [version, gauss_next], "numpy": [algorithm, position, has_gauss, cached_gaussian]}
    write_json(directory / f"random_states_{rank}.json", scalars, indent=2)


def load_random_states(directory: Path, rank: int) -> None:
    """Restore the generators of process `rank`.

    Raises:
        FileNotFoundError: the checkpoint was written by fewer processes.
    """
    tensors = load_file(directory / f"random_states_{rank}.safetensors")
    scalars = json.loads((directory / f"random_states_{rank}.json").read_text(encoding="utf-8"))
    version, gauss_next = scalars["python"]
    algorithm, position, has_gauss, cached_gaussian = scalars["numpy"]
    numpy_words = tensors["numpy"].numpy().astype(np.uint32)
    restore_random_states(
        {
            **tensors,
            "python": (version, tuple(tensors["python"].tolist()), gauss_next),
            "numpy": (algorithm, numpy_words, position, has_gauss, cached_gaussian),
        }
    )
