# SPDX-License-Identifier: Apache-2.0
"""The path that a layer runs and its reason: kernels from folders and from a loopback Hub, and all failures."""

import copy

import huggingface_hub
import pytest
import torch
from huggingface_hub import CommitOperationAdd, HfApi
from kernels import LayerRepository, LocalLayerRepository
from torch import nn
from transformers.utils import logging

from tests.support.helpers import build_files, local_mapping, needs_kernel_repositories
from transformers_cvis.kernels import MultiScaleDeformableAttention, disable_kernels, kernel_report, use_kernels

pytestmark = needs_kernel_repositories

NAME = "MultiScaleDeformableAttention"
SHAPES = [(2, 3)]


class Model(nn.Module):
    """Two layers that may run a kernel, and a parameter that gives the device."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.first, self.second = MultiScaleDeformableAttention(), MultiScaleDeformableAttention()

    def forward(self):
        value = torch.ones(1, 6, 2, 3)
        locations, weights = torch.full((1, 4, 2, 1, 2, 2), 0.5), torch.full((1, 4, 2, 1, 2), 0.5)
        sizes = torch.tensor(SHAPES)
        inputs = (value, sizes, SHAPES, sizes.new_zeros(1), locations, weights, 1)
        return self.first(*inputs) + self.second(*inputs)


def hub_mapping(repo_id, files=None):
    if files is not None:
        api = HfApi()
        api.create_repo(repo_id, repo_type="kernel")
        api.create_branch(repo_id, branch="v1", repo_type="kernel")
        operations = [CommitOperationAdd(name, content.encode()) for name, content in files.items()]
        api.create_commit(repo_id, operations, commit_message="build", revision="v1", repo_type="kernel")
    return {NAME: {"cpu": LayerRepository(repo_id, layer_name=NAME, version=1)}}


@pytest.fixture
def warnings(monkeypatch):
    """Return the messages of the package's logger, repeated ones included."""
    messages = []
    logger = logging.get_logger("transformers_cvis.kernels.hub_kernels")
    monkeypatch.setattr(logger, "warning_once", messages.append, raising=False)
    return messages


def assert_kernel(model):
    assert (model() == 84).all()
    assert all(path.startswith("Hub kernel ") for path in kernel_report(model).values())


def assert_falls_back(model, mapping, warnings, reason):
    """Check for one warning with the reason, the PyTorch path afterwards, and an error with `strict=True`."""
    use_kernels(model, mapping=mapping)
    assert (model() == 2).all()
    assert len(warnings) == 1
    assert "PyTorch path runs instead" in warnings[0]
    report = kernel_report(model)
    assert set(report) == {"first", "second"}
    assert all(reason in text for text in report.values()), report
    assert reason in warnings[0], warnings[0]
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the reason may be the name of the error's class
        use_kernels(model, mapping=mapping, strict=True)
    assert reason in f"{type(caught.value).__name__}: {' '.join(str(caught.value).split())}"
    assert (model() == 2).all()
    assert len(warnings) == 1


def test_a_local_kernel_runs_and_can_be_switched_off(tmp_path, warnings):
    model = Model()
    assert kernel_report(model) == {"first": "PyTorch", "second": "PyTorch"}
    use_kernels(model, mapping=local_mapping(tmp_path, build_files()), strict=True)
    assert_kernel(model)
    assert str(tmp_path) in kernel_report(model)["first"]
    disable_kernels(model)
    assert (model() == 2).all()
    assert kernel_report(model) == {"first": "PyTorch", "second": "PyTorch"}
    assert warnings == []


def test_a_copied_model_keeps_its_kernel(tmp_path):
    model = Model()
    use_kernels(model, mapping=local_mapping(tmp_path, build_files(name="cvis-copied-kernel")), strict=True)
    assert_kernel(copy.deepcopy(model))


def test_a_kernel_without_backward_is_not_used_for_training(tmp_path, warnings):
    mapping = local_mapping(tmp_path, build_files("has_backward = False", name="cvis-forward-only-kernel"))
    assert_falls_back(Model().train(), mapping, warnings, "does not support mode")
    model = Model().eval()
    use_kernels(model, mapping=mapping, strict=True)
    assert_kernel(model)


def test_a_device_type_without_a_kernel(warnings):
    assert_falls_back(Model(), None, warnings, "No layer mapping for `MultiScaleDeformableAttention` with device type")


def test_layers_outside_the_mapping_are_unchanged(warnings):
    model = Model()
    use_kernels(model, mapping={}, strict=True)
    assert (model() == 2).all()
    assert warnings == []


def test_a_kernel_of_a_trusted_publisher_on_the_hub(loopback_hub, warnings):
    model = Model()
    use_kernels(model, mapping=hub_mapping("kernels-community/cvis-works", build_files(name="cvis-works")), strict=True)
    assert_kernel(model)
    assert "kernels-community/cvis-works" in kernel_report(model)["first"]
    assert warnings == []


def test_a_missing_repository(loopback_hub, warnings):
    assert_falls_back(Model(), hub_mapping("kernels-community/cvis-absent"), warnings, "RepositoryNotFoundError")


def test_an_untrusted_publisher(loopback_hub, warnings):
    mapping = hub_mapping("tester/cvis-untrusted", build_files(name="cvis-untrusted"))
    assert_falls_back(Model(), mapping, warnings, "trust_remote_code")


def test_no_build_for_this_torch(loopback_hub, warnings):
    files = build_files(variant="torch11-cxx11-cu90-x86_64-linux", name="cvis-old")
    assert_falls_back(Model(), hub_mapping("kernels-community/cvis-old", files), warnings, "FileNotFoundError")


def test_no_build_in_a_local_folder(tmp_path, warnings):
    (tmp_path / "build").mkdir()
    mapping = {NAME: {"cpu": LocalLayerRepository(tmp_path, layer_name=NAME)}}
    assert_falls_back(Model(), mapping, warnings, "FileNotFoundError")


def test_offline_and_not_cached(loopback_hub, warnings, monkeypatch):
    mapping = hub_mapping("kernels-community/cvis-offline", build_files(name="cvis-offline"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert_falls_back(Model(), mapping, warnings, "offline mode")


def test_the_same_failure_is_told_once_in_a_session(monkeypatch):
    logger = logging.get_logger("transformers_cvis.kernels.hub_kernels")
    messages = []
    monkeypatch.setattr(logger, "warning", lambda message, *args, **kwargs: messages.append(message))
    type(logger).warning_once.cache_clear()
    for _ in range(3):
        use_kernels(Model())
    assert len(messages) == 1
