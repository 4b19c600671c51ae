# SPDX-License-Identifier: Apache-2.0
"""Task adapters of a model: what its tasks added, saved, loaded, pushed and pulled as Hub revisions.

`adapter_files` describes the files. `from_pretrained(repo, revision="task-2")` gives the model after task 2.
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

        Only dtypes that the weights can be rounded to: those of a model in bfloat16 tell nothing of its float32 ones.
        """
        own = {**self.no_object_parameters()}
        for task in range(1, self.num_tasks):
            own |= self.task_parameters(task)
        is_exact = self.dtype in (torch.float32, torch.float64)
        shared = ((name, tensor) for name, tensor in self.state_dict().items() if name not in own)
        return hash_weights(shared, [dtype for dtype in HASHED_DTYPES if is_exact or dtype == self.dtype])

    def card_title(self, name: str) -> str:
        """Return the title of the model card: the model and the task that it has learnt last.

        Args:
            name: the repository, or the folder, that loads the model. Of a folder that is called like the task, such as
                "runs/task-1", the title gives the parent.
        """
        task = task_name(self.num_tasks - 1)
        title = super().card_title(name.removesuffix(f"/{task}"))
        return title if self.num_tasks == 1 else f"{title} after {task}"

    # Loading

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, base: str | None = None, **kwargs):
        """Load a model as in transformers; a task adapter is added to the base that it names.

        Args:
            pretrained_model_name_or_path: Folder, or repository of the Hub, of a model or of a task adapter.
            base: Folder or repository of the base of an adapter, if it has moved.
            kwargs: As in transformers, `revision` among them.

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
        if find_file(name, ADAPTER_CONFIG_FILE, hub, required=False) is None:
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
        state_path = find_file(request.name, TASK_STATE_FILE, hub, required=False)
        if state_path is not None:
            self._store.restore(read_task_state(state_path))
        if self.num_tasks == 1:
            self._store.base = BaseReference.at(request.name, getattr(self.config, "_commit_hash", None))

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
            TypeError: an argument that is not among these.
            ValueError: it belongs to another base or architecture, leaves out a task, or differs from a task in memory.
        """
        unknown = sorted(set(hub_arguments) - set(HUB_ARGUMENTS))
        if unknown:
            raise TypeError(f"load_task_adapter takes no argument {unknown[0]!r}, only {', '.join(HUB_ARGUMENTS)}.")
        adapter = read_adapter(name, {**hub_arguments, "revision": revision})
        adapter.base.check(self.base_hashes())
        self._add_adapters(adapter, name, check_base=False)

    def _add_adapters(self, adapter: AdapterFile, name: str | os.PathLike, check_base: bool = True) -> None:
        if adapter.model_type != self.config.model_type:
            raise ValueError(
                f"{name} holds tasks of a {adapter.model_type} model and cannot be added to {self.config.model_type}."
            )
        if check_base:
            adapter.base.check(self.base_hashes())
        active, loaded = self.num_tasks - 1, len(self.loaded_task_adapters)
        self.set_task_adapters(loaded)
        try:
            for task in range(1, min(loaded, len(adapter.adapters)) + 1):
                if not self._capture(task).is_same(adapter.adapters[task - 1]):
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
            self._store.directions[0] = adapter.base_directions
        if len(adapter.adapters) < loaded:
            self.set_task_adapters(len(adapter.adapters))

    # Saving

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save the model as in transformers, and next to the weights what later tasks need to know of earlier ones."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if not kwargs.get("is_main_process", True):
            return
        is_base = self.num_tasks == 1
        write_task_state(self._store.tensors(), self.base_hashes() if is_base else None, Path(save_directory))
        if is_base:
            self._store.base = BaseReference.at(save_directory)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> CommitInfo:
        """Push the model whole, as [`HubMixin.push_to_hub`]; tasks added later find a base that was pushed there."""
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
        """Write what the active tasks added into a folder, for [`load_task_adapter`] and `from_pretrained`.

        Args:
            folder: made if needed; files appear under their names when they are complete, the description last.
            video_processor: saved as well, so that the folder is enough for a pipeline.
            base: folder or repository of the base. By default where this model's base was loaded from or saved to.
            base_revision: commit of `base` where that is a repository.
            card: what the model card tells beyond the model; its report and training summary are saved as well.
            name: what the card calls the repository or folder; by default as [`name_of_folder`].
            revision: the revision that loads the model, for the card.

        Raises:
            ValueError: there is no task after the base, or it is not known where the base is.
        """
        if self.num_tasks == 1:
            raise ValueError("The model has learnt no task after its base: save it with `save_pretrained`.")
        self._check_prompts()
        reference = self._store.base if base is None else BaseReference.at(base, base_revision)
        if reference is None:
            raise ValueError(
                "An adapter names its base, and this model's base is in memory only: save it (`save_pretrained`, before"
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
        """Push what the active tasks added to one revision of a repository, in one commit.

        Args:
            repo_id: "name" or "owner/name"; created if needed.
            video_processor: pushed as well, so that a pipeline can load the revision.
            revision: by default `task-N`, N the last active task; created if needed.
            base: repository of the base. By default where this model's base was loaded from or pushed to; a base that
                is in a folder must be on `main` of `repo_id`.
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
            RuntimeError: someone else wrote to the revision meanwhile; it is as the other left it.
            ValueError: there is no task, or the base is not on the Hub where it was looked for.
        """
        if self.num_tasks == 1:
            raise ValueError("The model has learnt no task after its base: push it with `push_to_hub`.")
        self._check_prompts()
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if base is None:
            ours = self._store.base or BaseReference()
            base, base_revision = (ours.repo, ours.revision) if ours.repo else (repo_id, "main")
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
    """Return the base that a revision holds, with its hashes.

    Raises:
        ValueError: the revision does not hold a base.
    """
    path = find_file(repo, TASK_STATE_FILE, {"revision": revision, "token": token}, required=False)
    hashes = None if path is None else read_base_hashes(path)
    if hashes is None:
        raise ValueError(
            f"{repo} at {revision} holds no base of a model that learns task by task: push the base there first, "
            "with `push_to_hub`, or say with `base` where it is."
        )
    return BaseReference(hashes, repo=repo, revision=revision)


def _describe_tasks(file: AdapterFile, base_classes: list[str]) -> str:
    """Return the section of the model card on the tasks of an adapter."""
    last = task_name(len(file.adapters))
    size = sum(tensor.numel() for adapter in file.adapters for tensor in adapter.weights.values())
    rows = [("base", base_classes)]
    rows += [(task_name(task), adapter.class_names) for task, adapter in enumerate(file.adapters, start=1)]
    return "\n".join(
        [
            f"The model after {last}. These files hold what its tasks added to the base, {file.base}: "
            f"{size / 1e6:.2f} M parameters. With the base in memory, `model.load_task_adapter(...)` fetches them "
            "alone, and `model.set_task_adapters(N)` goes back to the model after task N.",
            "",
            "| task | classes |",
            "| --- | --- |",
            *(f"| {name} | {', '.join(classes)} |" for name, classes in rows),
        ]
    )


__all__ = ["TaskAdapterMixin"]
