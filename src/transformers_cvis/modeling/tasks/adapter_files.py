# SPDX-License-Identifier: Apache-2.0
"""Files of task adapters: their format, readers and writers.

The base of a model that learns task by task lies on the branch `main` of a repository, like any model. The revision
`task-N` holds everything that tasks 1 to N added, in files of a few megabytes:

    task_adapter_config.json         the tasks and their classes; the place of the base and its hashes
    task_adapter_model.safetensors   for every task its prompts and heads, the no-object heads after it, and the
                                     directions that it protects, if any
    config.json, video_preprocessor_config.json, README.md   like those of any model, after task N

A whole model has `task_learning_state.safetensors` next to its weights: the no-object heads and protected directions
of its tasks, and, for a base, its hashes.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers.utils import cached_file

from ...files import sha256, write_json
from ...hub.owned_files import declare_owned_files

ADAPTER_CONFIG_FILE = "task_adapter_config.json"
ADAPTER_WEIGHTS_FILE = "task_adapter_model.safetensors"
TASK_STATE_FILE = "task_learning_state.safetensors"
FORMAT_VERSION = 1
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
# Weights of a base are hashed as they are and rounded, so that a base in half precision is recognised as well.
HASHED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

declare_owned_files(ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, TASK_STATE_FILE)


def task_name(task: int) -> str:
    """Return the name of a task, which its revision, its folder and its adapter in memory share."""
    return f"task-{task}"


@dataclass(frozen=True)
class BaseReference:
    """Place and identity of the base of an adapter. Either `repo` or `path` is given.

    Attributes:
        hashes (`dict[str, str]`): SHA-256 of the base's weights in hexadecimal digits, by the dtype that they were
            rounded to ("float32"); empty while they are unknown.
        repo (`str`, *optional*): repository on the Hub.
        revision (`str`, *optional*): commit or branch of `repo`; None for its default branch.
        path (`str`, *optional*): folder; in the files of an adapter it is relative to the folder of the adapter.
    """

    hashes: dict[str, str] = field(default_factory=dict)
    repo: str | None = None
    revision: str | None = None
    path: str | None = None

    def __str__(self) -> str:
        if self.repo is None:
            return str(self.path)
        return f"{self.repo} at {self.revision}" if self.revision else self.repo

    @classmethod
    def at(cls, name: str | os.PathLike, revision: str | None = None) -> "BaseReference":
        """Refer to the folder `name` if it exists, otherwise to a revision of the repository `name`."""
        if Path(name).is_dir():
            return cls(path=str(Path(name).resolve()))
        return cls(repo=str(name), revision=revision)

    def seen_from(self, folder: Path) -> "BaseReference":
        """Return the same reference with `path` relative to a folder."""
        return self if self.path is None else replace(self, path=os.path.relpath(self.path, folder.resolve()))

    def locate(self, adapter: str | os.PathLike) -> tuple[str, str | None]:
        """Return the folder or the repository of the base, and its revision, as `from_pretrained` takes them.

        Args:
            adapter: folder of the adapter that this reference was read from.
        """
        if self.repo is not None:
            return self.repo, self.revision
        return os.path.normpath(os.path.join(adapter, str(self.path))), None

    def check(self, hashes: Mapping[str, str]) -> None:
        """Check that a model is this base.

        Args:
            hashes: hashes of the model, as in [`BaseReference.hashes`].

        Raises:
            ValueError: the model differs from this base, or its hashes are those of other dtypes.
        """
        common = [dtype for dtype in hashes if dtype in self.hashes]
        if not common:
            raise ValueError(
                f"The adapter's base ({self}) was saved in {', '.join(self.hashes)}, so its weights cannot be compared "
                f"with those of a model in {', '.join(hashes)}: load the base in float32."
            )
        if any(hashes[dtype] != self.hashes[dtype] for dtype in common):
            raise ValueError(
                f"The adapter belongs to another base: {self}. It does not work with the weights of this model "
                f"(SHA-256 {hashes[common[0]][:12]}, expected {self.hashes[common[0]][:12]}): load that base."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the value of "base" in the description of an adapter."""
        place = {"path": self.path} if self.repo is None else {"repo": self.repo, "revision": self.revision}
        return {**place, "hashes": self.hashes}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "BaseReference":
        """Build a reference from the value that [`to_dict`] returns.

        Raises:
            KeyError: the hashes are missing.
            TypeError: `content` has unknown keys.
        """
        return cls(**{**content, "hashes": content["hashes"]})


@dataclass(frozen=True)
class TaskAdapter:
    """Classes and tensors that one task added to a model, on the CPU.

    Attributes:
        class_names (`list[str]`): names of its classes, as given to `add_task`.
        num_prompts (`int`): number of its prompts at each stage, as given to `add_task`.
        weights (`dict[str, torch.Tensor]`): the task's own parameters, by their names in the model.
        no_object (`dict[str, torch.Tensor]`): the no-object heads after the task, by their names in the model.
        directions (`torch.Tensor` of shape `(channels, rank)`, *optional*): directions that the task protects from
            later ones.
    """

    class_names: list[str]
    num_prompts: int
    weights: dict[str, torch.Tensor]
    no_object: dict[str, torch.Tensor]
    directions: torch.Tensor | None

    def is_same(self, other: "TaskAdapter") -> bool:
        """Return whether classes and weights equal those of `other`, whose weights are first rounded to our dtypes."""
        if self.class_names != other.class_names or self.weights.keys() != other.weights.keys():
            return False
        return all(
            tensor.shape == other.weights[name].shape and torch.equal(tensor, other.weights[name].to(tensor.dtype))
            for name, tensor in self.weights.items()
        )


@dataclass(frozen=True)
class AdapterFile:
    """Content of a revision `task-N`.

    Attributes:
        model_type (`str`): model type of the configuration.
        base (`BaseReference`): the base, with its hashes.
        adapters (`list[TaskAdapter]`): adapters of tasks 1 to N.
        base_directions (`torch.Tensor` of shape `(channels, rank)`, *optional*): directions that the base protects.
    """

    model_type: str
    base: BaseReference
    adapters: list[TaskAdapter]
    base_directions: torch.Tensor | None


@dataclass(frozen=True)
class TaskTensors:
    """Tensors by task; the safetensors files name them `weights.{task}.{name}`, `directions.{task}` and so on.

    Attributes:
        weights (`dict[int, dict[str, torch.Tensor]]`): parameters that a task added, by their names in the model.
        no_object (`dict[int, dict[str, torch.Tensor]]`): no-object heads after a task, by their names in the model.
        directions (`dict[int, torch.Tensor]`): directions that a task protects, `(channels, rank)`.
    """

    weights: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    no_object: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)
    directions: dict[int, torch.Tensor] = field(default_factory=dict)

    def to_flat(self) -> dict[str, torch.Tensor]:
        """Return the tensors by their names in a file."""
        flat = {f"directions.{task}": tensor for task, tensor in self.directions.items()}
        for kind, by_task in (("weights", self.weights), ("no_object", self.no_object)):
            flat |= {
                f"{kind}.{task}.{name}": tensor for task, named in by_task.items() for name, tensor in named.items()
            }
        return flat

    @classmethod
    def from_flat(cls, flat: Mapping[str, torch.Tensor]) -> "TaskTensors":
        """Sort the tensors of a file, as [`to_flat`] names them; other kinds are left out."""
        tensors = cls()
        for key, tensor in flat.items():
            kind, task, *name = key.split(".", 2)
            if kind == "directions":
                tensors.directions[int(task)] = tensor
            elif kind in ("weights", "no_object"):
                getattr(tensors, kind).setdefault(int(task), {})[name[0]] = tensor
        return tensors


# Adapters


def write_adapter(adapter: AdapterFile, folder: Path) -> None:
    """Write the description and the weights of an adapter into a folder, which must exist."""
    numbered = dict(enumerate(adapter.adapters, start=1))
    directions = {0: adapter.base_directions, **{task: one.directions for task, one in numbered.items()}}
    tensors = TaskTensors(
        weights={task: one.weights for task, one in numbered.items()},
        no_object={task: one.no_object for task, one in numbered.items()},
        directions={task: tensor for task, tensor in directions.items() if tensor is not None},
    )
    save_file(tensors.to_flat(), folder / ADAPTER_WEIGHTS_FILE, metadata={"format": "pt"})
    description = {
        "format_version": FORMAT_VERSION,
        "model_type": adapter.model_type,
        "base": adapter.base.to_dict(),
        "tasks": [
            {"name": task_name(task), "class_names": one.class_names, "num_prompts": one.num_prompts}
            for task, one in numbered.items()
        ],
        "weights_sha256": sha256(folder / ADAPTER_WEIGHTS_FILE),
    }
    write_json(folder / ADAPTER_CONFIG_FILE, description, indent=2)


def read_adapter(name: str | os.PathLike, hub_arguments: Mapping[str, Any]) -> AdapterFile:
    """Read the task adapters in a folder or in a revision of a repository.

    Args:
        name: folder, or repository on the Hub.
        hub_arguments: "revision" and `HUB_ARGUMENTS`, as transformers takes them; None counts as not given.

    Raises:
        OSError: no adapter was found, or a file is corrupt.
        ValueError: the adapter leaves out a task.
    """
    config_path = find_required_file(name, ADAPTER_CONFIG_FILE, hub_arguments)
    try:
        content = json.loads(Path(config_path).read_text(encoding="utf-8"))
        base, tasks, expected = BaseReference.from_dict(content["base"]), content["tasks"], content["weights_sha256"]
        version, model_type = content["format_version"], content["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(
            f"{config_path} is not a description of a task adapter ({type(error).__name__}: {error}): copy or download "
            "it again."
        ) from error
    if version > FORMAT_VERSION:
        raise OSError(f"{name} was written by a newer transformers_cvis (format {version}): update the package.")
    names = [task["name"] for task in tasks]
    if names != [task_name(task) for task in range(1, len(names) + 1)] or not names:
        raise ValueError(
            f"{name} holds the tasks {names}: tasks build on each other, so an adapter must hold all of them from "
            "task-1 on. Save it again with `save_task_adapter`."
        )
    path = find_required_file(name, ADAPTER_WEIGHTS_FILE, hub_arguments)
    if sha256(path) != expected:
        raise OSError(
            f"The weights of the task adapter {name} are corrupt or incomplete: the SHA-256 of {path} is not the one "
            "in its description. Copy it again, or pass `force_download=True` for a repository of the Hub."
        )
    tensors = TaskTensors.from_flat(_load_tensors(path))
    adapters = [
        TaskAdapter(
            class_names=task["class_names"],
            num_prompts=task["num_prompts"],
            weights=tensors.weights.get(number, {}),
            no_object=tensors.no_object.get(number, {}),
            directions=tensors.directions.get(number),
        )
        for number, task in enumerate(tasks, start=1)
    ]
    return AdapterFile(model_type, base, adapters, tensors.directions.get(0))


# State of a whole model


def write_task_state(tensors: TaskTensors, base_hashes: Mapping[str, str] | None, folder: Path) -> None:
    """Write the state of learning task by task into the folder of a whole model.

    Args:
        tensors: no-object heads and protected directions of its tasks.
        base_hashes: hashes of a base, as in [`BaseReference.hashes`]; None for a model with later tasks.
        folder: folder of the model, which must exist.
    """
    metadata = {"format": "pt"}  # safetensors cannot read a file that has neither tensors nor metadata
    if base_hashes is not None:
        metadata["base_hashes"] = json.dumps(base_hashes)
    save_file(tensors.to_flat(), folder / TASK_STATE_FILE, metadata=metadata)


def read_task_state(path: str | os.PathLike) -> TaskTensors:
    """Read the tensors of a file `task_learning_state.safetensors`.

    Raises:
        OSError: the file is corrupt.
    """
    return TaskTensors.from_flat(_load_tensors(path))


def read_base_hashes(path: str | os.PathLike) -> dict[str, str] | None:
    """Read the hashes of a base from a file `task_learning_state.safetensors`, None if the model is not a base.

    Raises:
        OSError: the file is corrupt.
    """
    with _explaining_corruption(path), safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get("base_hashes")
    return None if text is None else json.loads(text)


def hash_weights(tensors: Iterable[tuple[str, torch.Tensor]], dtypes: Iterable[torch.dtype]) -> dict[str, str]:
    """Return the SHA-256 of weights, in hexadecimal digits, by the name of the dtype that they are rounded to.

    Args:
        tensors: names and weights, in any order; only floating-point weights are rounded.
        dtypes: dtypes to round to.
    """
    digests = {dtype: hashlib.sha256() for dtype in dtypes}
    for name, tensor in sorted(tensors, key=lambda named: named[0]):
        for dtype, digest in digests.items():
            rounded = tensor.to(dtype) if tensor.is_floating_point() else tensor
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(rounded.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return {str(dtype).removeprefix("torch."): digest.hexdigest() for dtype, digest in digests.items()}


# Files of folders and repositories


def find_file(name: str | os.PathLike, file: str, hub_arguments: Mapping[str, Any]) -> str | None:
    """Find a file of a folder or a repository; if the Hub is out of reach, in the cache.

    Args:
        name: folder, or repository on the Hub.
        file: name of the file.
        hub_arguments: "revision" and `HUB_ARGUMENTS`, as transformers takes them; None counts as not given.

    Returns:
        The path of the file, or None if it does not exist.

    Raises:
        OSError: the repository or revision does not exist.
    """
    return _cached_file(name, file, hub_arguments, required=False)


def find_required_file(name: str | os.PathLike, file: str, hub_arguments: Mapping[str, Any]) -> str:
    """Find a file as [`find_file`] does, but raise an error if it does not exist.

    Raises:
        OSError: the file, the repository or the revision does not exist.
    """
    return _cached_file(name, file, hub_arguments, required=True)


def _cached_file(name: str | os.PathLike, file: str, hub_arguments: Mapping[str, Any], required: bool) -> Any:
    arguments = {key: value for key, value in hub_arguments.items() if value is not None}
    return cached_file(
        name,
        file,
        **arguments,
        _raise_exceptions_for_missing_entries=required,
        _raise_exceptions_for_connection_errors=required,
    )


def _load_tensors(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    with _explaining_corruption(path):
        return load_file(path)


@contextmanager
def _explaining_corruption(path: str | os.PathLike) -> Iterator[None]:
    """Raise an OSError that names the file in place of a SafetensorError."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path} is corrupt or incomplete ({error}): copy or download it again.") from error
