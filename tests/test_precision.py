# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from transformers_cvis.precision import at_least_float32, at_least_float32_dtype


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int64, torch.float32),
        (torch.bool, torch.float32),
    ],
)
def test_at_least_float32(dtype, expected):
    tensor = torch.ones(2, dtype=dtype)
    widened = at_least_float32(tensor)
    assert widened.dtype == at_least_float32_dtype(dtype) == expected
    assert (widened is tensor) == (dtype == expected)


def test_common_type():
    assert at_least_float32_dtype() == torch.float32
    assert at_least_float32_dtype(torch.float16, torch.bfloat16) == torch.float32
    assert at_least_float32_dtype(torch.float16, torch.float64) == torch.float64
