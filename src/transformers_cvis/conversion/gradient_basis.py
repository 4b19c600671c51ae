"""The protected directions that HVPL's training leaves beside a checkpoint."""

import os
from pathlib import Path

import numpy as np
import torch

from .array_pickles import PickledArray
from .reading import load_pickled

GRADIENT_BASIS_FILE = "grad_data_frame.pkl"


def read_gradient_basis(path: str | os.PathLike) -> torch.Tensor:
    """The basis of orthogonal gradient correction from a `grad_data_frame.pkl` of HVPL.

    The released code keeps it for the prompts of the frame detector, as `{0: {"key": array}}`. Its directions are those
    of samples, which apply to channels as there are as many of both (see `training.gradient_projection`).

    Returns:
        `(channels, rank)` float64 with orthonormal columns, what `GradientProjection` takes and `grow_basis_released`
        continues; rank 0 where the released code protected nothing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, would have to run code to be read, or holds no such basis.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    content = load_pickled(path)
    levels = list(content.values()) if isinstance(content, dict) else []
    entries = list(levels[0].values()) if len(levels) == 1 and isinstance(levels[0], dict) else []
    array = entries[0].array if len(entries) == 1 and isinstance(entries[0], PickledArray) else None
    if array is None or array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"{path} holds no gradient basis, which is {{0: {{name: array of channels x rank}}}}; HVPL's training "
            f"writes it as {GRADIENT_BASIS_FILE}."
        )
    basis = torch.from_numpy(array).double()
    identity = torch.eye(basis.shape[1], dtype=basis.dtype)
    if not torch.allclose(basis.T @ basis, identity, atol=1e-4):
        raise ValueError(f"The {basis.shape[1]} columns of {path} are not orthonormal: this is no basis of directions.")
    return basis
