# SPDX-License-Identifier: Apache-2.0
"""The file of protected directions that HVPL saves next to a checkpoint."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transformers_cvis.continual.gradient_projection import GradientProjection, grow_basis_released
from transformers_cvis.conversion import read_gradient_basis


def make_basis(channels: int = 16, rank: int = 3) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(0).standard_normal((channels, channels)))[0][:, :rank]


def write(folder: Path, content: Any) -> str:
    (folder / "grad_data_frame.pkl").write_bytes(pickle.dumps(content, protocol=4))
    return str(folder / "grad_data_frame.pkl")


@pytest.mark.parametrize("rank", [0, 3, 16])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_basis_of_any_rank_is_read_as_float64(tmp_path, rank, dtype):
    expected = make_basis(rank=rank).astype(dtype)
    found = read_gradient_basis(write(tmp_path, {0: {"prompt_feat": expected}}))
    assert found.dtype == torch.float64
    assert np.array_equal(found.numpy(), expected.astype("f8"))


def test_basis_that_was_read_protects_directions_and_grows(tmp_path):
    found = read_gradient_basis(write(tmp_path, {0: {"prompt_feat": make_basis()}}))
    prompts = torch.nn.Parameter(torch.randn(5, 16))
    prompts.grad = torch.randn(5, 16)
    GradientProjection([prompts], found).project_gradients()
    assert (prompts.grad.double() @ found).abs().max() < 1e-6
    grown = grow_basis_released(torch.randn(16, 16), 0.9, found)
    assert grown.shape[1] > 3
    assert torch.equal(grown[:, :3], found)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {0: {}},
        {0: {"a": make_basis(), "b": make_basis()}},
        {0: {"a": make_basis()}, 1: {"a": make_basis()}},
        {0: {"a": make_basis()[0]}},
        {0: {"a": np.arange(4).reshape(2, 2)}},
        {0: {"a": [1.0]}},
        [make_basis()],
    ],
)
def test_other_content_is_an_error(tmp_path, content):
    with pytest.raises(ValueError, match=r"grad_data_frame.pkl holds no gradient basis: expected {0: {name: array"):
        read_gradient_basis(write(tmp_path, content))


@pytest.mark.parametrize("array", [2 * make_basis(), np.full((4, 3), np.nan)], ids=["too long", "not a number"])
def test_columns_that_are_not_orthonormal_are_an_error(tmp_path, array):
    with pytest.raises(ValueError, match="holds no gradient basis: its 3 columns are not orthonormal"):
        read_gradient_basis(write(tmp_path, {0: {"a": array}}))


def test_absent_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Gradient basis .*absent.pkl' not found"):
        read_gradient_basis(tmp_path / "absent.pkl")


def test_file_that_would_run_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(tmp_path / "trace"),)

    with pytest.raises(ValueError, match=r"was not read: it asks for posix.mkdir"):
        read_gradient_basis(write(tmp_path, {0: {"a": Harmful()}}))
    assert not (tmp_path / "trace").exists()
