"""Checkpoint files of research code, read without running what is in them."""

import os
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .array_pickles import ForbiddenNameError, PickledArray, load_array_pickle

# How a file begins that `torch.save` has written: a zip archive, or before 2020 a pickle of this number.
ZIP_FILE = b"PK\x03\x04"
TORCH_FILES = (ZIP_FILE, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")


@dataclass
class ReleasedCheckpoint:
    """What a checkpoint file holds.

    Args:
        tensors: released name -> tensor, on the CPU.
        left_out: names of what else is in the file, such as the state of the optimizer.
    """

    tensors: dict[str, torch.Tensor]
    left_out: list[str] = field(default_factory=list)


def read_checkpoint(path: str | os.PathLike) -> ReleasedCheckpoint:
    """Reads `.safetensors`, what `torch.save` wrote, and pickles of numpy arrays; the content decides, not the name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, no checkpoint, or would have to run code to be read.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {str(path)!r}.")
    if path.suffix == ".safetensors":
        try:
            return ReleasedCheckpoint(load_file(path))
        except SafetensorError as error:
            raise _damaged(path, "safetensors", error) from error
    content = load_pickled(path)
    state_dict = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state_dict, dict):
        raise ValueError(f"{path} holds no state dict, neither by itself nor under 'model'.")
    left_out = [str(key) for key in content if key != "model"] if state_dict is not content else []
    tensors = {}
    for name, value in state_dict.items():
        if isinstance(value, PickledArray) and value.array is not None:
            value = torch.from_numpy(value.array)
        if isinstance(name, str) and isinstance(value, torch.Tensor):
            tensors[name] = value
        else:
            left_out.append(str(name))
    if not tensors:
        found = ", ".join(left_out[:5]) or "nothing"
        raise ValueError(f"{path} holds no tensors, neither by themselves nor under 'model'; it holds {found}.")
    return ReleasedCheckpoint(tensors, left_out)


def load_pickled(path: Path) -> Any:
    """The content of a file that is a pickle, or that `torch.save` wrote, with a `PickledArray` for a numpy array.

    Raises:
        ValueError: as `read_checkpoint`.
    """
    with open(path, "rb") as file:
        head = file.read(64)
        if not head:
            raise ValueError(f"{path} is empty: get the file again.")
        file.seek(0)
        is_zip = head.startswith(ZIP_FILE)
        try:
            if head.startswith(TORCH_FILES):
                return torch.load(path if is_zip else file, map_location="cpu", weights_only=True)
            return load_array_pickle(file)
        except Exception as error:  # both fail on foreign bytes in every way there is
            # After a name there is always more; where the file ends with it, it is half of one.
            is_cut = not is_zip and not file.read(1)
            if isinstance(error, ForbiddenNameError) and not is_cut:
                raise _refused(path, error.name) from error
            if head.startswith(TORCH_FILES) and isinstance(error, pickle.UnpicklingError) and not is_cut:
                # Not with torch's own message: its advice, to load without `weights_only`, would run the code.
                name = re.search(r"GLOBAL ([\w.]*\w)", str(error))
                raise _refused(path, name[1] if name else "something else than tensors") from error
            if head.startswith(TORCH_FILES):
                raise _damaged(path, "torch", error) from error
            if head.startswith(b"\x80"):
                raise _damaged(path, "pickle", error) from error
            raise ValueError(
                f"{path} is no checkpoint: it begins with {head[:24]!r}. A download that failed leaves a web page or a "
                "pointer in place of the file: get it again."
            ) from error


def _refused(path: Path, name: str) -> ValueError:
    return ValueError(
        f"{path} is not read: it asks for {name}, which weights do not need and which could run code. Nothing of it "
        "has run. Where you trust the file as you would trust a program, load it with the code that wrote it, and save "
        "the state dict alone with `torch.save`."
    )


def _damaged(path: Path, kind: str, error: Exception) -> ValueError:
    reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
    return ValueError(f"{path} is a {kind} file which is cut short or damaged ({reason}): get it again.")
