"""Linear layers that use oneDNN on CPU."""

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


_HAS_ONEDNN_LINEAR = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _onednn_can(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if not _HAS_ONEDNN_LINEAR or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    return torch.backends.mkldnn.enabled and all(
        type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" and tensor.dtype == torch.float32
        for tensor in tensors
    )
