# SPDX-License-Identifier: Apache-2.0
"""Training checkpoints: the state that a run needs to continue bit for bit, written atomically and without pickle.

A checkpoint is a folder such as `step-00001000`:

    config.json, model.safetensors   the model, written by `save_pretrained`; `from_pretrained(folder)` loads it
    optimizer.safetensors            AdamW moments by parameter name
    random_states_{rank}.safetensors, random_states_{rank}.json
                                     states of the generators of Python, NumPy and torch, one pair per process
    trainer_state.json               step, gradient scaler, recipe, training time in seconds
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
    """Return the folder of the checkpoint after `step` optimiser steps."""
    return directory / f"step-{step:08d}"


def list_checkpoints(directory: Path) -> list[Path]:
    """Return the complete checkpoints in `directory`, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if CHECKPOINT_NAME.fullmatch(path.name) and path.is_dir())


def find_checkpoint(directory: Path, resume: str | Path) -> Path | None:
    """Return the checkpoint from which a run starts, or None to start from the beginning.

    Args:
        directory: folder with the checkpoints of the run.
        resume: "auto" for the last complete checkpoint, if any; "restart" for None; otherwise the path of a checkpoint.

    Raises:
        FileNotFoundError: if `resume` is a path without a checkpoint.
    """
    if resume == "restart":
        return None
    if resume == "auto":
        return next(reversed(list_checkpoints(directory)), None)
    if not (Path(resume) / STATE_FILE).is_file():
        raise FileNotFoundError(f"{resume} is not a checkpoint: {STATE_FILE} is missing.")
    return Path(resume)


def commit(path: Path, keep: int) -> None:
    """Move a checkpoint from `incomplete_path(path)` to `path`, and delete all but the last `keep` checkpoints."""
    finish_folder(path)
    for old in list_checkpoints(path.parent)[:-keep]:
        discard_folder(old)


def remove_later(directory: Path, step: int) -> None:
    """Delete the checkpoints after `step`, where a run restarts, since its weights will differ from theirs."""
    for path in list_checkpoints(directory):
        if path.name > checkpoint_path(directory, step).name:
            discard_folder(path)


def save_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Save the state of an optimiser whose groups come from `optimization.parameter_groups`."""
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["parameter_names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{name}/{key}"] = value.contiguous()
    save_file(tensors, path)


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Load the state that [`save_optimizer`] wrote into an optimiser of the same parameters.

    Raises:
        ValueError: if the file has state of a parameter that this optimiser does not train.
    """
    parameters = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["parameter_names"], group["params"], strict=True)
    }
    for full_key, value in load_file(path).items():
        name, key = full_key.rsplit("/", 1)
        if name not in parameters:
            raise ValueError(
                f"{path} has optimiser state of {name!r}, which this run does not train. Continue with the recipe of "
                "the checkpoint, or start again with --resume restart."
            )
        # AdamW keeps its step counters on the CPU unless it is fused or capturable.
        device = torch.device("cpu") if key == "step" else parameters[name].device
        optimizer.state[parameters[name]][key] = value.to(device)


def capture_random_states() -> dict:
    """Return the states of the global generators of Python, NumPy, torch and the current GPU."""
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(states: dict) -> None:
    """Set the global generators to the states that [`capture_random_states`] returned."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def save_random_states(directory: Path, rank: int) -> None:
    """Save the states of the global generators of process `rank`."""
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
    """Set the global generators to the saved states of process `rank`.

    Raises:
        FileNotFoundError: if fewer processes wrote the checkpoint.
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
