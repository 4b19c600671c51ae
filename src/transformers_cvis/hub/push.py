# SPDX-License-Identifier: Apache-2.0
"""Push of weights, video processor and a generated model card to one revision of the Hub, in one commit."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ..files import temporary_folder
from .card import CardInfo, Report, last_part, model_card, write_training_summary
from .owned_files import REPORT_FILE, declare_owned_files, is_owned, read_files_of_report

MAX_SHARD_SIZE = "50GB"

declare_owned_files("model*.safetensors", SAFE_WEIGHTS_INDEX_NAME)  # the weights of `save_pretrained`, also in shards


class Processor(Protocol):
    """A video processor that can be saved."""

    def save_pretrained(self, save_directory: str | os.PathLike) -> Any:
        """Write the processor's configuration into a folder."""


class HubMixin:
    """Mixin for models on the Hub. It must precede `PreTrainedModel` in the bases of a model."""

    def card_title(self, name: str) -> str:
        """Return the title of the model card.

        Args:
            name: the repository, or the folder, that loads the model.
        """
        return last_part(name)

    def card_note(self) -> str | None:
        """Return a remark for users of the weights, to be shown on the model card, or None."""
        return None

    def push_to_hub(self, repo_id: str, *, video_processor: Processor | None = None, **kwargs: Any) -> CommitInfo:
        """Push the model, and its video processor if given, with a generated card to one revision of a repository.

        Args:
            repo_id: "name" or "owner/name"; created if needed.
            video_processor: the processor of the model; a pipeline cannot load a repository without one.
            kwargs: those of [`transformers_cvis.push_to_hub`], such as `revision` and `license`.

        Returns:
            The commit, with `commit_url` and `oid`.
        """
        return push_to_hub(self, video_processor, repo_id, **kwargs)


def push_to_hub(
    model: PreTrainedModel,
    video_processor: Processor | None,
    repo_id: str,
    *,
    revision: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    tags: Sequence[str] | None = None,
    license: str = "unknown",
    base_model: str | None = None,
    training_summary: Mapping[str, Any] | None = None,
    report: Report | None = None,
) -> CommitInfo:
    """Push model, video processor and model card to one revision of a repository, in one commit.

    The weights are uploaded before the revision is touched, so an interrupted push leaves it as it was. A new branch
    starts from the first commit of the repository.

    Args:
        model: the model to push.
        video_processor: its processor; None pushes the model alone, which a pipeline cannot load.
        repo_id: "name" or "owner/name"; created if needed.
        revision: branch, created if needed; None is the default branch.
        commit_message: title of the commit, by default "Upload" and the class of the model.
        commit_description: text of the commit.
        private: whether a repository that is created is private; None leaves it to the settings of its owner.
        token: access token of the Hub; None uses the one that `hf auth login` saved.
        create_pr: open a pull request instead of committing to the revision.
        max_shard_size: size of the largest file of weights, in bytes or like "5GB".
        tags: further tags of the Hub.
        license: identifier of the Hub, such as "apache-2.0", for the weights.
        base_model: repository that the training started from.
        training_summary: see [`CardInfo`]; also uploaded as `training_summary.json`.
        report: see [`CardInfo`]; its files are uploaded as well.

    Returns:
        The commit, with `commit_url` and `oid`. A push that changes no file makes no new commit.

    Raises:
        HfHubHTTPError: the Hub rejects the push. The revision is unchanged.
        RuntimeError: someone else wrote to the revision meanwhile. It stays as they left it.
    """
    card = CardInfo(license, base_model, tuple(tags or ()), training_summary, report)
    with temporary_folder() as folder:
        repo_id = HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id
        save_model(model, video_processor, folder, card, name=repo_id, revision=revision, max_shard_size=max_shard_size)
        return commit_folder(
            folder,
            repo_id,
            revision=revision,
            commit_message=commit_message or f"Upload {type(model).__name__}",
            commit_description=commit_description,
            token=token,
            create_pr=create_pr,
        )


def save_model(
    model: PreTrainedModel,
    video_processor: Processor | None,
    folder: str | os.PathLike,
    card: CardInfo,
    *,
    name: str,
    revision: str | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> None:
    """Write the files that [`push_to_hub`] uploads: weights, configuration, processor, card, summary and report.

    Args:
        model: the model to save.
        video_processor: its processor, or None.
        folder: receives the files; made if needed.
        card: content of the card beyond the model.
        name: the repository, or the folder, that loads the model, for the card.
        revision: the revision that loads the model, for the card; None is the default branch.
        max_shard_size: size of the largest file of weights, in bytes or like "5GB".
    """
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    save_next_to_weights(model, video_processor, folder, card, name=name, revision=revision)


def save_next_to_weights(
    model: PreTrainedModel,
    video_processor: Processor | None,
    folder: str | os.PathLike,
    card: CardInfo,
    *,
    name: str,
    revision: str | None = None,
) -> None:
    """Write the files that go with the weights of a whole model or of a task adapter.

    Args:
        model: the model that the card describes.
        video_processor: its processor, or None.
        folder: receives processor, card, training summary and report; must exist.
        card: content of the card beyond the model.
        name: the repository, or the folder, that loads the model, for the card.
        revision: the revision that loads the model, for the card; None is the default branch.
    """
    if video_processor is not None:
        video_processor.save_pretrained(folder)
    if card.training_summary:
        write_training_summary(card.training_summary, folder)
    if card.report is not None:
        card.report.save(folder)
    model_card(model, name, card, revision=revision).save(Path(folder) / "README.md")


def commit_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    revision: str | None,
    commit_message: str,
    commit_description: str | None = None,
    token: bool | str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Upload the files of a folder to one revision of an existing repository, in one commit.

    The commit deletes the files of the revision that a writer of the package owns and the folder lacks, see
    [`is_owned`].

    Args:
        folder: the files.
        repo_id: "owner/name".
        revision: branch, created if needed; None is the default branch.
        commit_message: title of the commit.
        commit_description: text of the commit.
        token: access token of the Hub; None uses the one that `hf auth login` saved.
        create_pr: open a pull request instead of committing to the revision.

    Returns:
        The commit, with `commit_url` and `oid`.

    Raises:
        HfHubHTTPError: the Hub rejects the push. The revision is unchanged.
        RuntimeError: someone else wrote to the revision meanwhile. It stays as they left it.
    """
    api = HfApi(token=token)
    branches = {branch.name: branch.target_commit for branch in api.list_repo_refs(repo_id).branches}
    new_branch = revision is not None and not revision.startswith("refs/pr/") and revision not in branches
    if new_branch:
        # A branch from `main` would show the model of `main` as its own, if this process were killed before its commit.
        # The first commit of a repository holds no model.
        parent = api.list_repo_commits(repo_id)[-1].commit_id
    else:
        parent = api.repo_info(repo_id, revision=revision).sha
    additions = _additions(Path(folder))
    deletions = _deletions(api, repo_id, parent, written={addition.path_in_repo for addition in additions})
    api.preupload_lfs_files(
        repo_id, additions, revision=None if new_branch else revision, create_pr=create_pr, free_memory=False
    )
    if new_branch:
        additions = _additions(Path(folder))  # the former ones were compared with `main`, and lack its files
        try:
            api.create_branch(repo_id, branch=revision, revision=parent)
        except HfHubHTTPError as error:
            raise _explained(error, repo_id, revision) from error
    try:
        return api.create_commit(
            repo_id,
            additions + deletions,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            parent_commit=parent,
        )
    except BaseException as error:
        if new_branch:  # it is still empty
            api.delete_branch(repo_id, branch=revision)
        if isinstance(error, HfHubHTTPError):
            raise _explained(error, repo_id, revision) from error
        raise


def _additions(folder: Path) -> list[CommitOperationAdd]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [CommitOperationAdd(path.relative_to(folder).as_posix(), str(path)) for path in paths]


def _deletions(api: HfApi, repo_id: str, parent: str, written: set[str]) -> list[CommitOperationDelete]:
    """Return the deletions of a push on top of a commit: files that the package owns and that are not `written`."""
    names = api.list_repo_files(repo_id, revision=parent)
    files_of_report = []
    if REPORT_FILE in names:
        files_of_report = read_files_of_report(api.hf_hub_download(repo_id, REPORT_FILE, revision=parent))
    return [CommitOperationDelete(name) for name in names if name not in written and is_owned(name, files_of_report)]


def _explained(error: HfHubHTTPError, repo_id: str, revision: str | None) -> Exception:
    """Return a RuntimeError if another writer has changed the revision meanwhile, otherwise the error itself."""
    if error.response is None or error.response.status_code not in (409, 412):
        return error
    return RuntimeError(
        f"{repo_id}, revision {revision or 'main'}: somebody else wrote to it during this push, and nothing was "
        "committed. Check its present content, and push again to replace it."
    )


__all__ = ["HubMixin", "commit_folder", "push_to_hub", "save_model"]
