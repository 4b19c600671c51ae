# SPDX-License-Identifier: Apache-2.0
"""Computing in float32 where tensors have a smaller type."""

import torch


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float32, or as it is in float64.

    Half precision and integers become float32. A tensor that is float32 or float64 already is returned itself.

    Args:
        tensor: of any shape and real type.
    """
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def at_least_float32_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Return the smallest type that holds all of `dtypes` and float32.

    Args:
        dtypes: of the tensors that are computed with.
    """
    common = torch.float32
    for dtype in dtypes:
        common = torch.promote_types(common, dtype)
    return common
