# SPDX-License-Identifier: Apache-2.0
"""The loopback Hub answers the real client like the Hub."""

import socket
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

REPO = "tester/repo"


def commit(revision, **files):
    operations = [CommitOperationAdd(name.replace("__", "."), content.encode()) for name, content in files.items()]
    return HfApi().create_commit(REPO, operations, commit_message="files", revision=revision)


def read(name, revision):
    with open(hf_hub_download(REPO, name, revision=revision), encoding="utf-8") as file:
        return file.read()


@pytest.fixture
def repo(loopback_hub):
    HfApi().create_repo(REPO)
    return loopback_hub.repos["model", REPO]


def test_branches_tags_and_pull_requests_are_read_by_revision(repo):
    api = HfApi()
    commit("main", a__txt="one", weights__safetensors="lfs one")
    api.create_tag(REPO, tag="v1")
    api.create_branch(REPO, branch="task-1")
    commit("task-1", a__txt="two", weights__safetensors="lfs two")
    pull_request = api.create_commit(
        REPO, [CommitOperationAdd("a.txt", b"three")], commit_message="pr", revision="main", create_pr=True
    )

    assert [read("a.txt", r) for r in ("main", "v1", "task-1", "refs/pr/1")] == ["one", "one", "two", "three"]
    assert read("weights.safetensors", "task-1") == "lfs two"
    assert pull_request.pr_num == 1
    assert [c["title"] for c in repo.history("task-1")] == ["files", "files", "initial commit"]
    folder = snapshot_download(REPO, revision="task-1")
    assert Path(folder, "a.txt").read_text(encoding="utf-8") == "two"


def test_failures_reach_the_clients_error_classes(repo):
    commit("main", a__txt="one")
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("tester/absent", "a.txt")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(REPO, "a.txt", revision="task-9")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "b.txt")


def test_an_injected_failure_leaves_the_revision_as_it_was(repo, loopback_hub):
    before = repo.branches["main"]
    with loopback_hub.failing("PUT", "/_lfs/"), pytest.raises((HfHubHTTPError, RuntimeError)):
        commit("main", a__txt="one", weights__safetensors="lfs one")
    assert repo.branches["main"] == before
    commit("main", a__txt="one", weights__safetensors="lfs one")
    assert set(repo.files("main")) == {"a.txt", "weights.safetensors"}


def test_internet_is_unreachable():
    with pytest.raises(OSError, match="without a network"):
        socket.create_connection(("huggingface.co", 443))
