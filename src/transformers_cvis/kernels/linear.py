# SPDX-License-Identifier: Apache-2.0
"""Linear layers and pointwise convolutions that use oneDNN on CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """`nn.Linear` whose float32 inference on CPU runs on oneDNN.

    Eager PyTorch gives float32 products to its BLAS library, which on other than Intel processors leaves half of the
    vector width unused (measured on AMD EPYC with AVX-512: 2.3 times slower). Training, other types and devices,
    autocast and `torch.compile` take the usual path; results agree to float32 rounding.
    """

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`nn.functional.linear` by the rule of [`Linear`]: input `(..., in)`, weight `(out, in)` -> `(..., out)`."""
    if _onednn_can(input, weight, bias):
        return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return F.linear(input, weight, bias)


def pointwise_convolution(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution with a 1x1 kernel and stride 1: input `(N, in, height, width)`, weight `(out, in, 1, 1)`.

    By the rule of [`Linear`] a product over pixels where the channels of `input` lie innermost, which PyTorch would
    leave to its BLAS library on a single thread; else `nn.functional.conv2d`.
    """
    if input.is_contiguous(memory_format=torch.channels_last) and _onednn_can(input, weight, bias):
        return linear(input.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    return F.conv2d(input, weight, bias)


class PointwiseConvolution(nn.Conv2d):
    """`nn.Conv2d` with a 1x1 kernel that runs as [`pointwise_convolution`]."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, kernel_size=1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        return pointwise_convolution(input, self.weight, self.bias)


HAS_ONEDNN_LINEAR = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _onednn_can(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if not HAS_ONEDNN_LINEAR or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    return torch.backends.mkldnn.enabled and all(
        type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" and tensor.dtype == torch.float32
        for tensor in tensors
    )
