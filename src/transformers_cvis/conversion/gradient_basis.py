# SPDX-License-Identifier: Apache-2.0
"""Read the protected directions that the training of HVPL saves next to a checkpoint."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .array_pickles import PickledArray
from .reading import load_pickled

GRADIENT_BASIS_FILE = "grad_data_frame.pkl"


def read_gradient_basis(path: str | os.PathLike[str]) -> torch.Tensor:
    """Read the basis of orthogonal gradient correction from a `grad_data_frame.pkl` of HVPL.

    The released code keeps the basis for the prompts of the frame detector, as `{0: {name: array}}`. Its directions are
    those of samples. They apply to channels because there are as many channels as samples, see
    `continual.gradient_projection`.

    Args:
        path: the file.

    Returns:
        float64 tensor `(channels, rank)` with orthonormal columns, as `GradientProjection` takes it and
        `grow_basis_released` continues it. The rank is 0 if the released code protected nothing.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, cannot be read without running code, or holds no such basis.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"Gradient basis {str(path)!r} not found: check the path.")
    array = _only_array(load_pickled(path))
    if array is None or array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"{path} holds no gradient basis: expected {{0: {{name: array of channels x rank}}}}, as the training of "
            f"HVPL writes it to {GRADIENT_BASIS_FILE}."
        )
    basis = torch.from_numpy(array).double()
    identity = torch.eye(basis.shape[1], dtype=basis.dtype)
    if not torch.allclose(basis.T @ basis, identity, atol=1e-4):
        raise ValueError(
            f"{path} holds no gradient basis: its {basis.shape[1]} columns are not orthonormal. Use the file as the "
            "training of HVPL wrote it."
        )
    return basis


def _only_array(content: Any) -> np.ndarray | None:
    """Return the array of `{number: {name: array}}`, or None for other content."""
    entries = list(content.values()) if isinstance(content, dict) else []
    arrays = list(entries[0].values()) if len(entries) == 1 and isinstance(entries[0], dict) else []
    return arrays[0].array if len(arrays) == 1 and isinstance(arrays[0], PickledArray) else None
