# SPDX-License-Identifier: Apache-2.0
"""Task adapters of a model: save, load and push the weights that its tasks added.

`adapter_files` describes the files. `from_pretrained(repo, revision="task-2")` loads the model after task 2.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo, HfApi
from transformers import PreTrainedConfig

from ...files import replace_files, temporary_folder
from ...hub.card import CardInfo, Report, name_of_folder
from ...hub.push import Processor, commit_folder, save_next_to_weights
from ..modeling_base import LoadingRequest
from .adapter_files import (
    ADAPTER_CONFIG_FILE,
    HASHED_DTYPES,
    HUB_ARGUMENTS,
    TASK_STATE_FILE,
    AdapterFile,
    BaseReference,
    find_file,
    hash_weights,
    read_adapter,
    read_base_hashes,
    read_task_state,
    task_name,
    write_adapter,
    write_task_state,
)
from .learning import TaskLearningMixin, config_before_tasks


class TaskAdapterMixin(TaskLearningMixin):
    """Files and Hub revisions of tasks. Precedes the video model in the bases of a model that learns task by task."""

    def base_hashes(self) -> dict[str, str]:
        """Return the SHA-256 of the weights that all tasks share, as they are and rounded, by dtype.

        A model in half precision has the hash of its own dtype only, since its float32 weights are unknown.
        """
        own = {**self.no_object_parameters()}
        for task in range(1, self.num_tasks):
            own |= self.task_parameters(task)
        is_exact = self.dtype in (torch.float32, torch.float64)
        shared = ((name, tensor) for name, tensor in self.state_dict().items() if name not in own)
        return hash_weights(shared, [dtype for dtype in HASHED_DTYPES if is_exact or dtype == self.dtype])

    def card_title(self, name: str) -> str:
        """Return the title of the model card: the model and its last task.

        Args:
            name: repository or folder that loads the model. For a folder named like the task, such as "runs/task-1",
                the title gives the parent.
        """
        task = task_name(self.num_tasks - 1)
        title = super().card_title(name.removesuffix(f"/{task}"))
        return title if self.num_tasks == 1 else f"{title} after {task}"

    # Loading

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: Any,
        base: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a model as in transformers; a task adapter is added to the base that it names.

        Args:
            pretrained_model_name_or_path: folder, or repository of the Hub, of a model or of a task adapter.
            model_args: as in transformers.
            base: folder or repository of the base of an adapter, if it has moved.
            kwargs: as in transformers, `revision` among them.

        Returns:
            The model in evaluation mode; with `output_loading_info=True` a tuple of the model and a dictionary.

        Raises:
            OSError: model, adapter or base cannot be found or read.
            ValueError: the adapter belongs to another base or architecture.
        """
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, base=base, **kwargs)

    @classmethod
    def _resolve_loading(cls, request: LoadingRequest) -> LoadingRequest:
        name, options = request.name, request.options
        base = options.pop("base", None)
        if name is None:  # weights in memory
            return request
        hub = {key: options[key] for key in (*HUB_ARGUMENTS, "revision") if key in options}
        if find_file(name, ADAPTER_CONFIG_FILE, hub) is None:
            if base is not None:
                raise ValueError(f"{name} is a whole model, not a task adapter: leave out `base`.")
            return request
        adapter, config = read_adapter(name, hub), request.config
        if not isinstance(config, PreTrainedConfig):
            config = cls.config_class.from_pretrained(name if config is None else config, **hub)
        for key in [key for key in options if hasattr(config, key)]:
            if key not in ("dtype", "torch_dtype"):
                setattr(config, key, options.pop(key))
        for key in ("revision", "code_revision", "_commit_hash", "adapter_kwargs"):
            options.pop(key, None)
        place, revision = adapter.base.locate(name) if base is None else (base, None)
        return LoadingRequest(
            place,
            config_before_tasks(config),
            {**options, "revision": revision},
            role=f"The base of the task adapter {name}",
            adapter=(adapter, config),
            adapter_name=name,
        )

    def _after_loading(self, request: LoadingRequest) -> None:
        super()._after_loading(request)
        if request.name is None:
            return
        if request.adapter is not None:
            adapter, config = request.adapter
            self._add_adapters(adapter, request.adapter_name)
            self._store.base = BaseReference.at(request.name, request.options["revision"])
            self.config._name_or_path = self.name_or_path = str(request.adapter_name)
            self.config._commit_hash = getattr(config, "_commit_hash", None)
            return
        hub = {key: request.options[key] for key in (*HUB_ARGUMENTS, "revision") if key in request.options}
        state_path = find_file(request.name, TASK_STATE_FILE, hub)
        if state_path is not None:
            self._store.restore(read_task_state(state_path))
        if self.num_tasks == 1:
            self._store.base = BaseReference.at(request.name, getattr(self.config, "_commit_hash", None))

    def load_task_adapter(self, name: str | os.PathLike, revision: str | None = None, **hub_arguments: Any) -> None:
        """Add the tasks of an adapter to this model; only the adapter is read or downloaded.

        Tasks that the model has learnt already must equal those of the adapter; the adapter's further tasks are added.
        All of them are active afterwards. If loading fails, the model stays as it is.

        Args:
            name: folder, or repository on the Hub.
            revision: branch, tag or commit, for example "task-2".
            hub_arguments: `token`, `cache_dir`, `force_download`, `local_files_only`, `proxies` as in transformers.

        Raises:
            OSError: the adapter does not exist, or its files are corrupt.
            TypeError: an argument is unknown.
            ValueError: the adapter belongs to another base or architecture, leaves out a task, or differs from a task
                in memory.
        """
        unknown = sorted(set(hub_arguments) - set(HUB_ARGUMENTS))
        if unknown:
            raise TypeError(
                f"load_task_adapter got an unknown argument {unknown[0]!r}; it takes `revision`, "
                f"{', '.join(f'`{known}`' for known in HUB_ARGUMENTS)}."
            )
        adapter = read_adapter(name, {**hub_arguments, "revision": revision})
        adapter.base.check(self.base_hashes())
        self._add_adapters(adapter, name, check_base=False)

    def _add_adapters(self, adapter: AdapterFile, name: str | os.PathLike, check_base: bool = True) -> None:
        """Append the tasks of an adapter that are not in memory yet; if that fails, the model stays as it is."""
        if adapter.model_type != self.config.model_type:
            raise ValueError(
                f"{name} holds tasks of a {adapter.model_type} model and cannot be added to a "
                f"{self.config.model_type} model."
            )
        if check_base:
            adapter.base.check(self.base_hashes())
        active, loaded = self.num_tasks - 1, len(self.loaded_task_adapters)
        self.set_task_adapters(loaded)
        try:
            for task in range(1, min(loaded, len(adapter.adapters)) + 1):
                if not self._capture(task).is_same(adapter.adapters[task - 1]):
                    raise ValueError(
                        f"{task_name(task)} of {name} differs from the one in memory: delete that with "
                        "`delete_task_adapter` to load this one."
                    )
            for task_adapter in adapter.adapters[loaded:]:
                self._attach(task_adapter)
        except BaseException:
            while self.num_tasks - 1 > loaded:
                self._remove_last_task()
            self.set_task_adapters(active)
            raise
        if adapter.base_directions is not None:
            self._store.directions[0] = adapter.base_directions
        if len(adapter.adapters) < loaded:
            self.set_task_adapters(len(adapter.adapters))

    # Saving

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save the model as in transformers, and next to its weights the state of learning task by task."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if not kwargs.get("is_main_process", True):
            return
        is_base = self.num_tasks == 1
        write_task_state(self._store.tensors(), self.base_hashes() if is_base else None, Path(save_directory))
        if is_base:
            self._store.base = BaseReference.at(save_directory)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:
        """Push the whole model, see [`HubMixin.push_to_hub`]; later adapters refer to a base that was pushed."""
        commit = super().push_to_hub(repo_id, **kwargs)
        if self.num_tasks == 1 and not kwargs.get("create_pr"):
            self._store.base = BaseReference(repo=commit.repo_url.repo_id, revision=commit.oid)
        return commit

    def save_task_adapter(
        self,
        folder: str | os.PathLike,
        video_processor: Processor | None = None,
        *,
        base: str | os.PathLike | None = None,
        base_revision: str | None = None,
        card: CardInfo | None = None,
        name: str | None = None,
        revision: str | None = None,
    ) -> None:
        """Save the active tasks in a folder, for [`load_task_adapter`] and `from_pretrained`.

        Args:
            folder: created if needed; files appear under their names when they are complete, the description last.
            video_processor: saved as well, so that a pipeline can load the folder.
            base: folder or repository of the base; by default that from which this model's base was loaded, or to
                which it was saved.
            base_revision: commit of `base` if that is a repository.
            card: further content of the model card; its report and training summary are saved as well.
            name: name of the repository or folder in the card; by default that of [`name_of_folder`].
            revision: revision that loads the model, for the card.

        Raises:
            ValueError: the model has no task after its base, or the place of the base is unknown.
        """
        if self.num_tasks == 1:
            raise ValueError("The model has no task after its base, so no adapter: save it with `save_pretrained`.")
        self._check_prompts()
        reference = self._store.base if base is None else BaseReference.at(base, base_revision)
        if reference is None:
            raise ValueError(
                "An adapter names its base, but this model's base is in memory only: save it (`save_pretrained`, before"
                " the first task is added) or push it, and pass its folder or repository as `base`."
            )
        adapters = [self._capture(task) for task in range(1, self.num_tasks)]
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        reference = replace(reference.seen_from(folder), hashes=self.base_hashes())
        file = AdapterFile(self.config.model_type, reference, adapters, self._store.directions.get(0))
        card = card or CardInfo()
        sections = {"Tasks": _describe_tasks(file, self.classes_of_task(0)), **card.sections}
        card = replace(card, base_model=reference.repo, sections=sections)
        with replace_files(folder, last=ADAPTER_CONFIG_FILE) as temporary:
            write_adapter(file, temporary)
            self.config.save_pretrained(temporary)
            name = name or name_of_folder(folder)
            save_next_to_weights(self, video_processor, temporary, card, name=name, revision=revision)

    def push_task_adapter(
        self,
        repo_id: str,
        video_processor: Processor | None = None,
        *,
        revision: str | None = None,
        base: str | None = None,
        base_revision: str | None = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        create_pr: bool = False,
        tags: Sequence[str] | None = None,
        license: str = "unknown",
        training_summary: Mapping[str, Any] | None = None,
        report: Report | None = None,
    ) -> CommitInfo:
        """Push the active tasks to one revision of a repository, in one commit.

        Args:
            repo_id: "name" or "owner/name"; created if needed.
            video_processor: pushed as well, so that a pipeline can load the revision.
            revision: by default `task-N`, N the last active task; created if needed.
            base: repository of the base; by default that from which this model's base was loaded, or to which it was
                pushed. A base that lies in a folder must be on `main` of `repo_id` as well.
            base_revision: revision of `base`, by default its default branch.
            commit_message: title of the commit.
            commit_description: text of the commit.
            private: whether a repository that is created is private; None leaves it to the settings of its owner.
            token: access token of the Hub; None uses the one that `hf auth login` saved.
            create_pr: open a pull request instead of committing to the revision.
            tags: further tags of the Hub.
            license: identifier of the Hub, such as "apache-2.0", for the weights.
            training_summary: see [`CardInfo`].
            report: see [`CardInfo`].

        Returns:
            The commit, with `commit_url` and `oid`.

        Raises:
            HfHubHTTPError: the Hub refuses; the revision is unchanged.
            RuntimeError: someone else wrote to the revision in the meantime; their commit stays.
            ValueError: the model has no task after its base, or `base` does not hold its base.
        """
        if self.num_tasks == 1:
            raise ValueError("The model has no task after its base, so no adapter: push it with `push_to_hub`.")
        self._check_prompts()
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if base is None:
            known = self._store.base
            base, base_revision = (known.repo, known.revision) if known and known.repo else (repo_id, "main")
        base_revision = api.repo_info(base, revision=base_revision).sha
        _read_pushed_base(base, base_revision, token).check(self.base_hashes())
        task = task_name(self.num_tasks - 1)
        card = CardInfo(license, tags=tuple(tags or ()), training_summary=training_summary, report=report)
        places = {"base": base, "base_revision": base_revision, "name": repo_id, "revision": revision or task}
        with temporary_folder() as folder:
            self.save_task_adapter(folder, video_processor, card=card, **places)
            return commit_folder(
                folder,
                repo_id,
                revision=revision or task,
                commit_message=commit_message or f"Upload {type(self).__name__} after {task}",
                commit_description=commit_description,
                token=token,
                create_pr=create_pr,
            )


def _read_pushed_base(repo: str, revision: str, token: bool | str | None) -> BaseReference:
    """Return a reference to the base that a revision holds, with its hashes.

    Raises:
        ValueError: the revision does not hold a base.
    """
    path = find_file(repo, TASK_STATE_FILE, {"revision": revision, "token": token})
    hashes = None if path is None else read_base_hashes(path)
    if hashes is None:
        raise ValueError(
            f"{repo} at {revision} does not hold the base of a model that learns task by task: push the base there "
            "first, with `push_to_hub`, or pass its repository as `base`."
        )
    return BaseReference(hashes, repo=repo, revision=revision)


def _describe_tasks(file: AdapterFile, base_classes: list[str]) -> str:
    """Return the section of the model card about the tasks of an adapter."""
    last = task_name(len(file.adapters))
    size = sum(tensor.numel() for adapter in file.adapters for tensor in adapter.weights.values())
    rows = [("base", base_classes)]
    rows += [(task_name(task), adapter.class_names) for task, adapter in enumerate(file.adapters, start=1)]
    return "\n".join(
        [
            f"This is the model after {last}. The files hold the {size / 1e6:.2f} M parameters that its tasks added to "
            f"the base, {file.base}. If the base is in memory, `model.load_task_adapter(...)` downloads only these "
            "files, and `model.set_task_adapters(N)` switches back to the model after task N.",
            "",
            "| task | classes |",
            "| --- | --- |",
            *(f"| {name} | {', '.join(classes)} |" for name, classes in rows),
        ]
    )


__all__ = ["TaskAdapterMixin"]
