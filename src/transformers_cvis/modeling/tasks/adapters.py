"""What tasks added to a model, apart from the model: kept, switched, saved, loaded, pushed and pulled as Hub revisions.

A model that learns task by task has its base on the branch `main` of a repository, as any model. The revision `task-N`
holds, in files of a few megabytes, everything that tasks 1 to N added:

    task_adapter_config.json         the tasks and their classes, the base they belong to (where it is, its hash)
    task_adapter_model.safetensors   prompts and heads of every task, the no-object heads as each task left them, and
                                     the directions that each task protects, where it does
    config.json, video_preprocessor_config.json, README.md   as of any model, after task N

so that `from_pretrained(repo, revision="task-2")` gives the model after task 2.
"""

import copy
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo, HfApi
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.utils import cached_file

from ...files import replace_files, sha256, temporary_folder, write_json
from ...hub.push import commit_folder, model_card, write_training_summary
from ..modeling_base import LoadingRequest
from .learning import TaskLearningMixin

ADAPTER_CONFIG_FILE = "task_adapter_config.json"
ADAPTER_WEIGHTS_FILE = "task_adapter_model.safetensors"
TASK_STATE_FILE = "task_learning_state.safetensors"
FORMAT_VERSION = 1
# Hashes of the base are kept for its weights as they are and rounded, so that a base in half precision is known, too.
HASHED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")


@dataclass(frozen=True)
class BaseReference:
    """Where the base of an adapter is, and what identifies it.

    Attributes:
        hashes (`dict[str, str]`): SHA-256 of the base's weights, by the type that they were rounded to.
        repo (`str`, *optional*), revision (`str`, *optional*): repository and commit on the Hub.
        path (`str`, *optional*): a folder, relative to that of the adapter.
    """

    hashes: dict[str, str]
    repo: str | None = None
    revision: str | None = None
    path: str | None = None

    def __str__(self) -> str:
        return f"{self.repo} at {self.revision}" if self.repo else str(self.path)


@dataclass(frozen=True)
class TaskAdapter:
    """What one task added to a model, on the CPU.

    Attributes:
        class_names (`list[str]`), num_prompts (`int`): as given to `add_task`.
        weights (`dict[str, torch.Tensor]`): the task's own parameters, by their names in the model.
        no_object (`dict[str, torch.Tensor]`): the no-object heads as the task left them.
        directions (`torch.Tensor` of shape `(channels, rank)`, *optional*): what the task added to the directions that
            later tasks keep clear of.
    """

    class_names: list[str]
    num_prompts: int
    weights: dict[str, Tensor]
    no_object: dict[str, Tensor]
    directions: Tensor | None


@dataclass(frozen=True)
class AdapterFile:
    """The content of a revision `task-N`."""

    model_type: str
    base: BaseReference
    adapters: list[TaskAdapter]
    base_directions: Tensor | None


class TaskAdapterMixin(TaskLearningMixin):
    """Precedes the video model in the bases of a model that learns task by task.

    The names of tasks after the base are `task-1`, `task-2`, ... Active tasks speak; a task that was loaded and is not
    active waits in memory. Tasks build on each other, so those that are active are always the first ones.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self._waiting: list[TaskAdapter] = []  # tasks after the active ones
        self._no_object_after: dict[int, dict[str, Tensor]] = {}  # heads as a task left them, for all but the last
        self._directions: dict[int, Tensor] = {}  # (channels, rank) that each task protects, the base's included
        self._base_place: dict[str, str | None] | None = None

    # Tasks in memory

    def add_task(self, class_names: list[str], num_prompts: int) -> None:
        """As [`TaskLearningMixin.add_task`]; no task may wait to be activated."""
        if self._waiting:
            raise ValueError(
                f"{task_name(self.num_tasks)} is in memory, but not active: activate it with `set_task_adapters`, or "
                "drop it with `delete_task_adapter`, before another task is added."
            )
        heads = _copies(self.no_object_parameters())
        super().add_task(class_names, num_prompts)
        self._no_object_after[self.num_tasks - 2] = heads

    def active_task_adapters(self) -> list[str]:
        """Names of the active tasks, the base not counted."""
        return [task_name(task) for task in range(1, self.num_tasks)]

    def loaded_task_adapters(self) -> list[str]:
        """Names of all tasks in memory, active or not."""
        return [task_name(task) for task in range(1, self.num_tasks + len(self._waiting))]

    def set_task_adapters(self, names: Sequence[str] | int) -> None:
        """Activate the first tasks in memory and let the others wait; the base stays where it is.

        Args:
            names: the tasks to be active, in order, beginning with `task-1`; or their number. None of them is the base
                alone.

        Raises:
            ValueError: a task that is not in memory, or a gap (`task-3` without `task-2`); the model stays as it is.
        """
        if self.num_tasks > 1:
            self._check_prompts()
        loaded = self.loaded_task_adapters()
        number = names if isinstance(names, int) else len(names)
        wanted = loaded[:number] if isinstance(names, int) else list(names)
        if not 0 <= number <= len(loaded) or wanted != loaded[:number]:
            raise ValueError(
                f"Cannot activate {names!r}: tasks build on each other, so the active ones must be the first of those "
                f"in memory, {loaded}."
            )
        if number < self.num_tasks - 1:
            self._no_object_heads(number)
        while self.num_tasks - 1 > number:
            self._waiting.insert(0, self._capture(self.num_tasks - 1))
            self.remove_task()
        while self.num_tasks - 1 < number:
            self._attach(self._waiting.pop(0))

    def delete_task_adapter(self, name: str) -> None:
        """Forget the last task in memory.

        Raises:
            ValueError: there is no such task, or others build on it.
        """
        loaded = self.loaded_task_adapters()
        if name not in loaded:
            raise ValueError(f"There is no {name!r} in memory, only {loaded}.")
        if name != loaded[-1]:
            raise ValueError(f"Other tasks build on {name}: delete {loaded[-1]} first.")
        if self._waiting:
            self._waiting.pop()
        else:
            self.remove_task()

    def protect_directions(self, directions: Tensor) -> None:
        """Remember the directions that the task learnt last protects from later ones; they travel with its adapter.

        Args:
            directions: `(channels, rank)`, orthonormal, and orthogonal to those of earlier tasks.
        """
        self._directions[self.num_tasks - 1] = directions.detach().to("cpu", copy=True).contiguous()

    def protected_directions(self) -> Tensor | None:
        """All directions that active tasks protect, `(channels, rank)`, in the order of the tasks; None without any."""
        parts = [self._directions[task] for task in range(self.num_tasks) if task in self._directions]
        return torch.cat(parts, dim=1) if parts else None

    def _check_prompts(self) -> None:
        if not self.learns_by_prompts:
            raise ValueError(
                f"This {type(self).__name__} learns by all its weights: its tasks are no adapters; save the whole "
                "model with `save_pretrained`."
            )

    def _no_object_heads(self, task: int) -> dict[str, Tensor]:
        """The no-object heads as an active task (0 is the base) left them.

        Raises:
            ValueError: they are not known.
        """
        if task == self.num_tasks - 1:
            return _copies(self.no_object_parameters())
        if task not in self._no_object_after:
            raise ValueError(
                f"What {task_name(task) if task else 'the base'} left of the no-object heads is not known, since these "
                "weights were not saved by this package: the model cannot go back to that task, and its tasks cannot "
                "be told apart as adapters. Save or push it whole (`save_pretrained`, `push_to_hub`)."
            )
        return self._no_object_after[task]

    def _capture(self, task: int) -> TaskAdapter:
        return TaskAdapter(
            class_names=self._classes_of(task),
            num_prompts=self.config.task_prompt_counts[task - 1],
            weights=_copies(self.task_parameters(task)),
            no_object=self._no_object_heads(task),
            directions=self._directions.get(task),
        )

    def _classes_of(self, task: int) -> list[str]:
        counts = self.config.task_class_counts
        return list(self.config.id2label.values())[sum(counts[:task]) : sum(counts[: task + 1])]

    def remove_task(self) -> None:
        """As [`TaskLearningMixin.remove_task`]; the no-object heads go back to what the task before left of them."""
        super().remove_task()
        _copy_into(self.no_object_parameters(), self._no_object_after.pop(self.num_tasks - 1, {}))
        self._directions.pop(self.num_tasks, None)

    def _attach(self, adapter: TaskAdapter) -> None:
        """Append a task with its weights.

        Raises:
            ValueError: the weights are not those of a task of this model, which then stays as it is.
        """
        task = self.num_tasks
        waiting, self._waiting = self._waiting, []
        try:
            self.add_task(adapter.class_names, adapter.num_prompts)
        finally:
            self._waiting = waiting
        own = {**self.task_parameters(task), **self.no_object_parameters()}
        given = {**adapter.weights, **adapter.no_object}
        if problem := _difference(given, own):
            self.remove_task()
            raise ValueError(f"{task_name(task)} does not fit this {type(self).__name__}: {problem}")
        _copy_into(own, given)
        if adapter.directions is not None:
            self._directions[task] = adapter.directions

    # The base

    def base_hashes(self) -> dict[str, str]:
        """SHA-256 of the weights that all tasks share, as they are or rounded, by type.

        Only types that the weights can be rounded to: those of a model in bfloat16 say nothing of its float32 ones.
        """
        own = {**self.no_object_parameters()}
        for task in range(1, self.num_tasks):
            own |= self.task_parameters(task)
        exact = self.dtype in (torch.float32, torch.float64)
        digests = {dtype: hashlib.sha256() for dtype in HASHED_DTYPES if exact or dtype == self.dtype}
        for name, tensor in sorted(self.state_dict().items()):
            if name in own:
                continue
            for dtype, digest in digests.items():
                rounded = tensor.to(dtype) if tensor.is_floating_point() else tensor
                digest.update(f"{name} {tuple(tensor.shape)}".encode())
                digest.update(rounded.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return {str(dtype).removeprefix("torch."): digest.hexdigest() for dtype, digest in digests.items()}

    def _check_base(self, base: BaseReference) -> None:
        ours = self.base_hashes()
        common = [name for name in ours if name in base.hashes]
        if not common:
            raise ValueError(
                f"The adapter's base ({base}) was saved in {', '.join(base.hashes)}, so its weights cannot be compared "
                f"with a model in {', '.join(ours)}: load the base in float32."
            )
        if any(ours[name] != base.hashes[name] for name in common):
            raise ValueError(
                f"The adapter belongs to another base: {base}. Its prompts mean nothing to the weights of this model "
                f"(SHA-256 {ours[common[0]][:12]}, expected {base.hashes[common[0]][:12]})."
            )

    # Files

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """As in transformers; a file beside the weights holds what later tasks need to know of earlier ones."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if not kwargs.get("is_main_process", True):
            return
        tensors = {f"directions.{task}": tensor for task, tensor in self._directions.items()}
        for task, heads in self._no_object_after.items():
            tensors |= {f"no_object.{task}.{name}": tensor for name, tensor in heads.items()}
        metadata = {"format": "pt"}  # safetensors cannot read a file back that has neither tensors nor metadata
        if self.num_tasks == 1:
            metadata["base_hashes"] = json.dumps(self.base_hashes())
        save_file(tensors, Path(save_directory) / TASK_STATE_FILE, metadata=metadata)
        if self.num_tasks == 1:
            self._base_place = {"path": str(Path(save_directory).resolve())}

    def push_to_hub(self, repo_id: str, **kwargs) -> CommitInfo:
        commit = super().push_to_hub(repo_id, **kwargs)
        if self.num_tasks == 1 and not kwargs.get("create_pr"):
            self._base_place = {"repo": commit.repo_url.repo_id, "revision": commit.oid}
        return commit

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, base: str | None = None, **kwargs):
        """Load a model as in transformers; a task adapter is added to the base that it names.

        Args:
            base: Folder or repository of the base of an adapter, where it has moved.

        Raises:
            OSError: Model, adapter or base cannot be found or read.
            ValueError: The adapter belongs to another base or architecture.
        """
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, base=base, **kwargs)

    @classmethod
    def _resolve_loading(cls, request: LoadingRequest) -> LoadingRequest:
        name, options = request.name, request.options
        base = options.pop("base", None)
        if name is None:  # weights in memory
            return request
        hub = {key: options[key] for key in (*HUB_ARGUMENTS, "revision") if key in options}
        if _find_file(name, ADAPTER_CONFIG_FILE, hub, required=False) is None:
            if base is not None:
                raise ValueError(f"{name} holds a whole model and no task adapter: leave out `base`.")
            return request
        adapter, config = read_adapter(name, hub), request.config
        if not isinstance(config, PreTrainedConfig):
            config = cls.config_class.from_pretrained(name if config is None else config, **hub)
        for key in [key for key in options if hasattr(config, key)]:
            if key not in ("dtype", "torch_dtype"):
                setattr(config, key, options.pop(key))
        for key in ("revision", "code_revision", "_commit_hash", "adapter_kwargs"):
            options.pop(key, None)
        place, options["revision"] = _locate_base(adapter.base, name, base)
        role = f"The base of the task adapter {name}"
        return LoadingRequest(place, cls.config_before_tasks(config), options, role, (adapter, config), name)

    def _after_loading(self, request: LoadingRequest) -> None:
        super()._after_loading(request)
        place, revision = request.name, request.options.get("revision")
        if request.adapter is not None:
            adapter, config = request.adapter
            self._add_adapters(adapter, request.adapter_name)
            self._base_place = (
                {"repo": place, "revision": revision} if revision else {"path": str(Path(place).resolve())}
            )
            self.config._name_or_path = self.name_or_path = str(request.adapter_name)
            self.config._commit_hash = getattr(config, "_commit_hash", None)
            return
        if place is None:
            return
        hub = {key: request.options[key] for key in (*HUB_ARGUMENTS, "revision") if key in request.options}
        self._load_task_state(_find_file(place, TASK_STATE_FILE, hub, required=False))
        if self.num_tasks == 1:
            if Path(place).is_dir():
                self._base_place = {"path": str(Path(place).resolve())}
            else:
                self._base_place = {"repo": str(place), "revision": getattr(self.config, "_commit_hash", None)}

    @staticmethod
    def config_before_tasks(config: PreTrainedConfig) -> PreTrainedConfig:
        """The configuration of the base of a model that has learnt tasks."""
        config = copy.deepcopy(config)
        names = list(config.id2label.values())[: config.task_class_counts[0]]
        config.task_class_counts, config.task_prompt_counts = config.task_class_counts[:1], []
        config.id2label = dict(enumerate(names))
        config._commit_hash = None  # that of the adapter, under which the base's files would be looked for
        return config

    def load_task_adapter(self, name: str | os.PathLike, revision: str | None = None, **hub_arguments) -> None:
        """Add the tasks of an adapter to this model, of which only the adapter is read or downloaded.

        Tasks that the model has learnt already must be those of the adapter; its further ones are added. All of them
        are active afterwards. When this fails, the model is as it was.

        Args:
            name: folder, or repository on the Hub.
            revision: branch, tag or commit, e.g. "task-2".
            hub_arguments: `token`, `cache_dir`, `force_download`, `local_files_only`, `proxies` as in transformers.

        Raises:
            OSError: there is no such adapter, or its files are corrupt.
            ValueError: it belongs to another base or architecture, leaves out a task, or differs from a task in memory.
        """
        unknown = sorted(set(hub_arguments) - set(HUB_ARGUMENTS))
        if unknown:
            raise TypeError(f"load_task_adapter takes no argument {unknown[0]!r}, only {', '.join(HUB_ARGUMENTS)}.")
        adapter = read_adapter(name, {**hub_arguments, "revision": revision})
        self._check_base(adapter.base)
        self._add_adapters(adapter, name, check_base=False)

    def _add_adapters(self, adapter: AdapterFile, name: str | os.PathLike, check_base: bool = True) -> None:
        if adapter.model_type != self.config.model_type:
            raise ValueError(
                f"{name} holds tasks of a {adapter.model_type} model and cannot be added to {self.config.model_type}."
            )
        if check_base:
            self._check_base(adapter.base)
        active, loaded = self.num_tasks - 1, len(self.loaded_task_adapters())
        self.set_task_adapters(loaded)
        try:
            for task in range(1, min(loaded, len(adapter.adapters)) + 1):
                if not _same_task(self._capture(task), adapter.adapters[task - 1]):
                    raise ValueError(
                        f"{task_name(task)} of {name} is another one than that in memory: delete it with "
                        "`delete_task_adapter` to load this one."
                    )
            for task_adapter in adapter.adapters[loaded:]:
                self._attach(task_adapter)
        except BaseException:
            while self.num_tasks - 1 > loaded:
                self.remove_task()
            self.set_task_adapters(active)
            raise
        if adapter.base_directions is not None:
            self._directions[0] = adapter.base_directions
        if len(adapter.adapters) < loaded:
            self.set_task_adapters(len(adapter.adapters))

    def save_task_adapter(
        self,
        folder: str | os.PathLike,
        video_processor=None,
        *,
        base: str | os.PathLike | None = None,
        base_revision: str | None = None,
        report=None,
        name: str | None = None,
        revision: str | None = None,
        license: str = "unknown",
        training_summary: dict[str, Any] | None = None,
    ) -> None:
        """Write what the active tasks added into a folder, for [`load_task_adapter`] and `from_pretrained`.

        Args:
            folder: made where needed; files appear under their names when they are complete, the description last.
            video_processor: saved beside, so that the folder is enough for a pipeline.
            base, base_revision: folder, or repository and commit of the base. By default where this model's base was
                loaded from or saved to.
            report, name, revision, license, training_summary: for the card, see `model_card`; files of the report and
                the summary are saved beside, too.

        Raises:
            ValueError: there is no task after the base, or it is not known where the base is.
        """
        if self.num_tasks == 1:
            raise ValueError("The model has learnt no task after its base: save it with `save_pretrained`.")
        self._check_prompts()
        place = self._base_place if base is None else {"repo": str(base), "revision": base_revision}
        if base is not None and Path(base).is_dir():
            place = {"path": str(Path(base).resolve())}
        if place is None:
            raise ValueError(
                "An adapter names its base, and this model's base is in memory only: save it (`save_pretrained`, before"
                " the first task is added) or push it, and pass its folder or repository as `base`."
            )
        adapters = [self._capture(task) for task in range(1, self.num_tasks)]
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if place.get("path"):
            place = {"path": os.path.relpath(place["path"], folder.resolve())}
        with replace_files(folder, last=ADAPTER_CONFIG_FILE) as temporary:
            self._write_adapters(adapters, temporary, place)
            self.config.save_pretrained(temporary)
            if video_processor is not None:
                video_processor.save_pretrained(temporary)
            if report is not None:
                report.save(temporary)
            if training_summary:
                write_training_summary(training_summary, temporary)
            self._adapter_card(name or folder.name, revision, report, license, training_summary, place).save(
                temporary / "README.md"
            )

    def _write_adapters(self, adapters: list[TaskAdapter], folder: Path, place: Mapping[str, str | None]) -> None:
        tensors = {f"directions.{task}": tensor for task, tensor in self._directions.items()}
        for task, adapter in enumerate(adapters, start=1):
            tensors |= {f"weights.{task}.{name}": tensor for name, tensor in adapter.weights.items()}
            tensors |= {f"no_object.{task}.{name}": tensor for name, tensor in adapter.no_object.items()}
        weights_path = folder / ADAPTER_WEIGHTS_FILE
        save_file(tensors, weights_path, metadata={"format": "pt"})
        description = {
            "format_version": FORMAT_VERSION,
            "model_type": self.config.model_type,
            "base": {**place, "hashes": self.base_hashes()},
            "tasks": [
                {"name": task_name(task), "class_names": adapter.class_names, "num_prompts": adapter.num_prompts}
                for task, adapter in enumerate(adapters, start=1)
            ],
            "weights_sha256": sha256(weights_path),
        }
        write_json(folder / ADAPTER_CONFIG_FILE, description, indent=2)

    def _adapter_card(self, name, revision, report, license, training_summary, place):
        counts = self.config.task_class_counts
        rows = ["| task | classes |", "| --- | --- |"]
        rows += [
            f"| {task_name(task) if task else 'base'} | {', '.join(self._classes_of(task))} |"
            for task in range(len(counts))
        ]
        base = BaseReference({}, **place)
        own = sum(
            parameter.numel() for task in range(1, len(counts)) for parameter in self.task_parameters(task).values()
        )
        sections = {
            "Tasks": "\n".join(
                [
                    f"The model after {task_name(len(counts) - 1)}. These files hold what its tasks added to the base, "
                    f"{base}: {own / 1e6:.2f} M parameters. With the base in memory, "
                    f"`model.load_task_adapter(...)` fetches them alone, and `model.set_task_adapters(N)` goes back to "
                    "the model after task N.",
                    "",
                    *rows,
                ]
            )
        }
        return model_card(
            self,
            name,
            revision=revision,
            license=license,
            base_model=place.get("repo"),
            training_summary=training_summary,
            report=report,
            sections=sections,
        )

    def push_task_adapter(
        self,
        repo_id: str,
        video_processor=None,
        *,
        revision: str | None = None,
        base: str | None = None,
        base_revision: str | None = None,
        report=None,
        license: str = "unknown",
        training_summary: dict[str, Any] | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Push what the active tasks added to one revision of a repository, in one commit.

        Args:
            repo_id: "name" or "owner/name"; created if needed.
            revision: by default `task-N`, N the last active task; created if needed.
            base, base_revision: repository and revision of the base. By default where this model's base was loaded from
                or pushed to; a base that is in a folder must be on `main` of `repo_id`.
            video_processor, report, license, training_summary: as for [`save_task_adapter`].
            commit_message, private, token, create_pr: as in transformers.

        Raises:
            ValueError: there is no task, or the base is not on the Hub where it was looked for.
            HfHubHTTPError: the Hub refuses. RuntimeError: someone else wrote to the revision meanwhile. Either way
                nothing of this push is there.
        """
        if self.num_tasks == 1:
            raise ValueError("The model has learnt no task after its base: push it with `push_to_hub`.")
        self._check_prompts()
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if base is None:
            place = self._base_place or {}
            base, base_revision = (place["repo"], place["revision"]) if place.get("repo") else (repo_id, "main")
        base_revision = api.repo_info(base, revision=base_revision).sha
        self._check_pushed_base(base, base_revision, token)
        revision = revision or task_name(self.num_tasks - 1)
        with temporary_folder() as folder:
            self.save_task_adapter(
                folder,
                video_processor,
                base=base,
                base_revision=base_revision,
                report=report,
                name=repo_id,
                revision=revision,
                license=license,
                training_summary=training_summary,
            )
            return commit_folder(
                folder,
                repo_id,
                revision=revision,
                commit_message=commit_message or f"Upload {type(self).__name__} after {task_name(self.num_tasks - 1)}",
                token=token,
                create_pr=create_pr,
            )

    def _check_pushed_base(self, repo: str, revision: str, token) -> None:
        path = _find_file(repo, TASK_STATE_FILE, {"revision": revision, "token": token}, required=False)
        metadata = {}
        if path is not None:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
        if "base_hashes" not in metadata:
            raise ValueError(
                f"{repo} at {revision} holds no base of a model that learns task by task: push the base there first, "
                "with `push_to_hub`, or say with `base` where it is."
            )
        self._check_base(BaseReference(json.loads(metadata["base_hashes"]), repo=repo, revision=revision))

    def _load_task_state(self, path: str | None) -> None:
        if path is None:
            return
        for key, tensor in _load_tensors(path).items():
            kind, task, *name = key.split(".", 2)
            if kind == "directions":
                self._directions[int(task)] = tensor
            else:
                self._no_object_after.setdefault(int(task), {})[name[0]] = tensor


def task_name(task: int) -> str:
    return f"task-{task}"


def read_adapter(name: str | os.PathLike, hub_arguments: Mapping[str, Any]) -> AdapterFile:
    """The tasks that a folder or a revision of a repository holds.

    Raises:
        OSError: no adapter there, or a file that is corrupt.
        ValueError: the adapter leaves out a task.
    """
    config_path = _find_file(name, ADAPTER_CONFIG_FILE, hub_arguments, required=True)
    try:
        content = json.loads(Path(config_path).read_text(encoding="utf-8"))
        base, tasks, expected = BaseReference(**content["base"]), content["tasks"], content["weights_sha256"]
        version, model_type = content["format_version"], content["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(
            f"{config_path} is no description of a task adapter ({type(error).__name__}: {error})."
        ) from error
    if version > FORMAT_VERSION:
        raise OSError(f"{name} was written by a newer transformers_cvis (format {version}): update the package.")
    names = [task["name"] for task in tasks]
    if names != [task_name(task) for task in range(1, len(names) + 1)] or not names:
        raise ValueError(
            f"{name} holds the tasks {names}: tasks build on each other, so an adapter holds all of them from task-1 "
            "on."
        )
    path = _find_file(name, ADAPTER_WEIGHTS_FILE, hub_arguments, required=True)
    if sha256(path) != expected:
        raise OSError(
            f"The weights of the task adapter {name} are corrupt or incomplete: {path} is not the file that its "
            "description belongs to. Copy it again, or pass `force_download=True` for a repository of the Hub."
        )
    tensors = _load_tensors(path)
    parts: dict[str, dict[int, dict[str, Tensor]]] = {"weights": {}, "no_object": {}}
    for key, tensor in tensors.items():
        kind, task, *rest = key.split(".", 2)
        if kind in parts:
            parts[kind].setdefault(int(task), {})[rest[0]] = tensor
    adapters = [
        TaskAdapter(
            task["class_names"],
            task["num_prompts"],
            parts["weights"].get(number, {}),
            parts["no_object"].get(number, {}),
            tensors.get(f"directions.{number}"),
        )
        for number, task in enumerate(tasks, start=1)
    ]
    return AdapterFile(model_type, base, adapters, tensors.get("directions.0"))


def _find_file(name: str | os.PathLike, file: str, hub_arguments: Mapping[str, Any], required: bool) -> str | None:
    """Path of a file of a folder or repository, from the cache where the Hub is out of reach; None if it is not there.

    Raises:
        OSError: it is required and not there; or there is no such repository or revision.
    """
    arguments = {key: value for key, value in hub_arguments.items() if value is not None}
    return cached_file(
        name,
        file,
        **arguments,
        _raise_exceptions_for_missing_entries=required,
        _raise_exceptions_for_connection_errors=required,
    )


def _load_tensors(path: str | os.PathLike) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise OSError(f"{path} is corrupt or incomplete ({error}): copy or download it again.") from error


def _locate_base(base: BaseReference, adapter: str | os.PathLike, given: str | None) -> tuple[str, str | None]:
    """Folder or repository of the base of an adapter, and its revision."""
    if given is not None:
        return given, None
    if base.repo is not None:
        return base.repo, base.revision
    return os.path.normpath(os.path.join(adapter, base.path)), None


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


@torch.no_grad()
def _copy_into(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)


def _difference(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    """What hinders `given` to be loaded into `own`, None if nothing does."""
    missing, foreign = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or foreign:
        return f"it {f'lacks {missing[0]}' if missing else f'has {foreign[0]}, which the model has not'}."
    for name, tensor in given.items():
        if tensor.shape != own[name].shape:
            return f"{name} has the shape {tuple(tensor.shape)}, the model's {tuple(own[name].shape)}."
    return None


def _same_task(first: TaskAdapter, second: TaskAdapter) -> bool:
    if first.class_names != second.class_names or first.weights.keys() != second.weights.keys():
        return False
    return all(
        tensor.shape == second.weights[name].shape and torch.equal(tensor, second.weights[name].to(tensor.dtype))
        for name, tensor in first.weights.items()
    )


__all__ = ["TaskAdapterMixin"]
