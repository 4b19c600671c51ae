# SPDX-License-Identifier: Apache-2.0
"""Promotion of tensors to float32 for computations that half precision is too coarse for."""

import torch


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Convert a tensor to float32, unless it is float64.

    Args:
        tensor: tensor of any shape and real dtype.

    Returns:
        The tensor in float32 or float64. A tensor that has one of them already is returned itself.
    """
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def at_least_float32_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Return the smallest dtype that holds float32 and all of `dtypes`.

    Args:
        dtypes: dtypes of the tensors of a computation.
    """
    common = torch.float32
    for dtype in dtypes:
        common = torch.promote_types(common, dtype)
    return common
