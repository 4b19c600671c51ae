# SPDX-License-Identifier: Apache-2.0
"""Linear layers and pointwise convolutions that use oneDNN on CPU."""

import torch
from torch import nn


class Linear(nn.Linear):
    """`nn.Linear` whose float32 inference on CPU runs on oneDNN.

    Eager PyTorch gives float32 products to its BLAS library, which leaves half of the vector width unused on processors
    that are not from Intel (measured on AMD EPYC with AVX-512: 2.3 times slower). Training, other dtypes and devices,
    autocast and `torch.compile` take the usual path. Both paths agree to float32 rounding.

    Example:
    ```python
    >>> import torch
    >>> from transformers_cvis.kernels import Linear

    >>> with torch.no_grad():
    ...     Linear(8, 4)(torch.randn(2, 3, 8)).shape
    torch.Size([2, 3, 4])

    ```
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Apply the layer to `(..., in_features)`."""
        return linear(input, self.weight, self.bias)


def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Apply a linear layer like `nn.functional.linear`, on oneDNN where [`Linear`] uses it.

    Args:
        input: tensor of shape `(..., in)`.
        weight: tensor of shape `(out, in)`.
        bias: tensor of shape `(out,)`.

    Returns:
        Tensor of shape `(..., out)`.

    Example:
    ```python
    >>> import torch
    >>> from transformers_cvis.kernels import linear

    >>> input, weight = torch.randn(3, 8), torch.randn(4, 8)
    >>> torch.allclose(linear(input, weight), input @ weight.T, atol=1e-5)
    True

    ```
    """
    if _onednn_can(input, weight, bias):
        return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return nn.functional.linear(input, weight, bias)


def pointwise_convolution(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Convolve with a 1x1 kernel and stride 1.

    An input in `channels_last` format goes to oneDNN as a product over pixels, where [`Linear`] uses oneDNN; PyTorch
    would leave it to its BLAS library on a single thread. Any other input goes to `nn.functional.conv2d`.

    Args:
        input: tensor of shape `(B, in, H, W)`.
        weight: tensor of shape `(out, in, 1, 1)`.
        bias: tensor of shape `(out,)`.

    Returns:
        Tensor of shape `(B, out, H, W)`.

    Example:
    ```python
    >>> import torch
    >>> from transformers_cvis.kernels import pointwise_convolution

    >>> input = torch.randn(1, 8, 5, 7).to(memory_format=torch.channels_last)
    >>> pointwise_convolution(input, torch.randn(4, 8, 1, 1)).shape
    torch.Size([1, 4, 5, 7])

    ```
    """
    if input.is_contiguous(memory_format=torch.channels_last) and _onednn_can(input, weight, bias):
        return linear(input.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    return nn.functional.conv2d(input, weight, bias)


class PointwiseConvolution(nn.Conv2d):
    """`nn.Conv2d` with a 1x1 kernel that runs [`pointwise_convolution`].

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        bias: add a learned bias.

    Example:
    ```python
    >>> import torch
    >>> from transformers_cvis.kernels import PointwiseConvolution

    >>> PointwiseConvolution(8, 4)(torch.randn(1, 8, 5, 7)).shape
    torch.Size([1, 4, 5, 7])

    ```
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, bias=bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Apply the convolution to `(B, in_channels, H, W)`."""
        return pointwise_convolution(input, self.weight, self.bias)


HAS_ONEDNN_LINEAR = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _onednn_can(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    if not HAS_ONEDNN_LINEAR or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    if not torch.backends.mkldnn.enabled:
        return False
    return all(
        type(tensor) in (torch.Tensor, nn.Parameter) and tensor.device.type == "cpu" and tensor.dtype == torch.float32
        for tensor in tensors
    )
