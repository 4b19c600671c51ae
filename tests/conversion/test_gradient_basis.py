"""The basis of protected directions beside a checkpoint of HVPL."""

import os
import pickle

import numpy as np
import pytest
import torch

from transformers_cvis.continual.gradient_projection import GradientProjection, grow_basis_released
from transformers_cvis.conversion import read_gradient_basis


def basis(channels: int = 16, rank: int = 3) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(0).standard_normal((channels, channels)))[0][:, :rank]


def written(folder, content) -> str:
    (folder / "grad_data_frame.pkl").write_bytes(pickle.dumps(content, protocol=4))
    return str(folder / "grad_data_frame.pkl")


@pytest.mark.parametrize("rank", [0, 3, 16])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_read(tmp_path, rank, dtype):
    expected = basis(rank=rank).astype(dtype)
    found = read_gradient_basis(written(tmp_path, {0: {"prompt_feat": expected}}))
    assert found.dtype == torch.float64 and np.array_equal(found.numpy(), expected.astype("f8"))


def test_a_read_basis_protects_and_grows(tmp_path):
    found = read_gradient_basis(written(tmp_path, {0: {"prompt_feat": basis()}}))
    prompts = torch.nn.Parameter(torch.randn(5, 16))
    prompts.grad = torch.randn(5, 16)
    GradientProjection([prompts], found).project_gradients()
    assert (prompts.grad.double() @ found).abs().max() < 1e-6
    grown = grow_basis_released(torch.randn(16, 16), 0.9, found)
    assert grown.shape[1] > 3 and torch.equal(grown[:, :3], found)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {0: {}},
        {0: {"a": basis(), "b": basis()}},
        {0: {"a": basis()}, 1: {"a": basis()}},
        {0: {"a": basis()[0]}},
        {0: {"a": np.arange(4).reshape(2, 2)}},
        {0: {"a": [1.0]}},
        [basis()],
    ],
)
def test_other_content(tmp_path, content):
    with pytest.raises(ValueError, match="grad_data_frame.pkl holds no gradient basis, which is {0: {name: array"):
        read_gradient_basis(written(tmp_path, content))


def test_columns_which_are_no_directions(tmp_path):
    with pytest.raises(ValueError, match="The 3 columns of .* are not orthonormal"):
        read_gradient_basis(written(tmp_path, {0: {"a": 2 * basis()}}))
    with pytest.raises(ValueError, match="are not orthonormal"):
        read_gradient_basis(written(tmp_path, {0: {"a": np.full((4, 1), np.nan)}}))


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file .*absent.pkl"):
        read_gradient_basis(tmp_path / "absent.pkl")

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trace"),)

    with pytest.raises(ValueError, match="is not read: it asks for posix.mkdir"):
        read_gradient_basis(written(tmp_path, {0: {"a": Harmful()}}))
    assert not (tmp_path / "trace").exists()
