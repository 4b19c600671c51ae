# SPDX-License-Identifier: Apache-2.0
"""Read checkpoint files of research code without running code that they contain."""

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

# First bytes of files that `torch.save` wrote: a zip archive, or before 2020 a pickle of a fixed number.
ZIP_FILE = b"PK\x03\x04"
TORCH_FILES = (ZIP_FILE, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")


@dataclass
class ReleasedCheckpoint:
    """Hold the content of a checkpoint file.

    Args:
        tensors: released name -> tensor, on the CPU.
        left_out: names of other content, such as the state of the optimizer.
    """

    tensors: dict[str, torch.Tensor]
    left_out: list[str] = field(default_factory=list)


def read_checkpoint(path: str | os.PathLike[str]) -> ReleasedCheckpoint:
    """Read a checkpoint.

    Args:
        path: a `.safetensors` file, a file that `torch.save` wrote, or a pickle of numpy arrays. The content decides
            between the last two, not the name. The state dict is the whole content, or its entry "model".

    Returns:
        The tensors, and the names of other content.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, is not a checkpoint, or cannot be read without running code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"Checkpoint {str(path)!r} not found: check the path.")
    if path.suffix == ".safetensors":
        try:
            return ReleasedCheckpoint(load_file(path))
        except SafetensorError as error:
            raise _damaged(path, "safetensors", error) from error
    content = load_pickled(path)
    state_dict = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state_dict, dict):
        raise ValueError(f"{path} holds no state dict, neither as its content nor under 'model'.")
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
        raise ValueError(f"{path} holds no tensors, neither as its content nor under 'model': it holds {found}.")
    return ReleasedCheckpoint(tensors, left_out)


def load_pickled(path: Path) -> Any:
    """Load a file that `torch.save` wrote, or a pickle of numpy arrays.

    Args:
        path: the file.

    Returns:
        The content, with a `PickledArray` for every numpy array.

    Raises:
        ValueError: the file is damaged, is not a pickle, or cannot be read without running code.
    """
    with open(path, "rb") as file:
        head = file.read(64)
        if not head:
            raise ValueError(f"{path} is empty: download the file again.")
        file.seek(0)
        is_zip = head.startswith(ZIP_FILE)
        try:
            if head.startswith(TORCH_FILES):
                return torch.load(path if is_zip else file, map_location="cpu", weights_only=True)
            return load_array_pickle(file)
        except Exception as error:  # both loaders raise many unrelated types on invalid data
            # A pickle never ends with a name, so a file that ends here was truncated within a name.
            is_truncated = not is_zip and not file.read(1)
            if isinstance(error, ForbiddenNameError) and not is_truncated:
                raise _refused(path, error.name) from error
            if head.startswith(TORCH_FILES) and isinstance(error, pickle.UnpicklingError) and not is_truncated:
                # The message of torch advises to load without `weights_only`, which would run the code.
                name = re.search(r"GLOBAL ([\w.]*\w)", str(error))
                raise _refused(path, name[1] if name else "something other than tensors") from error
            if head.startswith(TORCH_FILES):
                raise _damaged(path, "torch", error) from error
            if head.startswith(b"\x80"):
                raise _damaged(path, "pickle", error) from error
            raise ValueError(
                f"{path} is not a checkpoint: it begins with {head[:24]!r}. A failed download leaves a web page or a "
                "pointer in place of the file: download it again."
            ) from error


def _refused(path: Path, name: str) -> ValueError:
    return ValueError(
        f"{path} was not read: it asks for {name}, which weights do not need and which could run code. Nothing in it "
        "has run. If you trust the file like a program, load it with the code that wrote it, and save the state dict "
        "alone with `torch.save`."
    )


def _damaged(path: Path, kind: str, error: Exception) -> ValueError:
    reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
    return ValueError(f"{path} is a {kind} file that is truncated or damaged ({reason}): download it again.")
