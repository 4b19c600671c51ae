# SPDX-License-Identifier: Apache-2.0
"""Inference whose result for one element of a batch is bitwise the same for every batch size.

Ordinary CPU kernels do not promise that:

- threads divide the rows of a matrix product, and rows that do not fill the height of a kernel are summed in another
  order;
- attention works in memory of each thread, whose alignment decides how products are summed;
- activations use other code where a thread's share of the numbers does not fill a vector.

This module makes each of them do the same work for every element:

- A product is batched, with one matrix per element of the batch. It is never divided if each thread has at least one
  matrix; idle threads get matrices of zeros. A single row or column is padded with a second one of zeros, because
  products with vectors use other code.
- Attention pads the queries to full cache lines, so that the memory of every thread has the same alignment.
- Activations are composed of functions of one argument (exp, tanh, erf, log1p), which PyTorch evaluates by the same
  vector code at every position.

Sums, norms over channels, depthwise convolutions, arithmetic of two tensors and indexing are batch-invariant already.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..precision import at_least_float32
from .linear import HAS_ONEDNN_LINEAR

ROWS_OF_A_CACHE_LINE = 16  # of 4 bytes each: attention works in float32 or wider


class BatchInvariance(TorchFunctionMode):
    """Context in which linear layers, matrix products, attention, SiLU, GELU and softplus are batch-invariant on CPU.

    The first axis of the first argument is the batch. Gradients flow as usual. Results differ from those outside the
    context by rounding only. Other devices, and code compiled by `torch.compile`, keep their usual functions.

    Example:
    ```python
    >>> import torch
    >>> from transformers_cvis.kernels import BatchInvariance

    >>> layer, states = torch.nn.Linear(8, 8), torch.randn(5, 3, 8)
    >>> with BatchInvariance():
    ...     torch.equal(layer(states)[:2], layer(states[:2]))
    True

    ```
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the batch-invariant form of `function`, or `function` itself if it has none."""
        if not torch.compiler.is_compiling() and function in _BATCH_INVARIANT and args[0].device.type == "cpu":
            function = _BATCH_INVARIANT[function]
        return function(*args, **(kwargs or {}))


def batch_invariant_linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Apply a linear layer like `nn.functional.linear`, batch-invariant on CPU.

    Args:
        input: tensor of shape `(B, ..., in)`.
        weight: tensor of shape `(out, in)`, or `(B, out, in)` with one matrix per element.
        bias: tensor of shape `(out,)`, or `(B, out)` with one vector per element.

    Returns:
        Tensor of shape `(B, ..., out)`.

    Example:
    ```python
    >>> import torch
    >>> from transformers_cvis.kernels import batch_invariant_linear

    >>> states, weight = torch.randn(5, 3, 8), torch.randn(4, 8)
    >>> torch.equal(batch_invariant_linear(states, weight)[:2], batch_invariant_linear(states[:2], weight))
    True

    ```
    """
    rows = input.reshape(len(input), -1, input.shape[-1])
    products = _products(rows, weight.expand(len(input), -1, -1).transpose(1, 2))
    if bias is not None:
        products = products + bias.expand(len(input), -1)[:, None]
    return products.unflatten(1, input.shape[1:-1]) if input.dim() > 2 else products[:, 0]


def _matmul(input: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Multiply `(B, rows, inner)` by `(inner, columns)` or `(B, inner, columns)`."""
    return _products(input, other.expand(len(input), -1, -1))


def _products(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Multiply `(B, rows, inner)` by `(B, inner, columns)`."""
    count, num_rows, num_columns = len(left), left.shape[1], right.shape[2]
    missing = max(0, torch.get_num_threads() - count) if left.device.type == "cpu" else 0
    if missing or num_rows == 1:
        left = nn.functional.pad(left, (0, 0, 0, num_rows == 1, 0, missing))
    if num_columns == 1:
        right = nn.functional.pad(right, (0, 1))
    if missing:
        shared = count == 1 or right.stride(0) == 0
        right = right[:1].expand(len(left), -1, -1) if shared else _filled_up(right, missing)
    return torch.bmm(left, right)[:count, :num_rows, :num_columns]


def _filled_up(matrices: torch.Tensor, missing: int) -> torch.Tensor:
    """Append `missing` matrices of zeros to a batch, and keep its memory order."""
    if matrices.stride(1) < matrices.stride(2):
        return _filled_up(matrices.mT, missing).mT
    return nn.functional.pad(matrices, (0, 0, 0, 0, 0, missing))


def _scaled_dot_product_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None, **options: Any
) -> torch.Tensor:
    """Attend with tensors `(B, heads, length, channels)` and a mask `(B, 1 or heads, queries or 1, keys)`."""
    count, num_queries = len(query), query.shape[2]
    missing = -num_queries % ROWS_OF_A_CACHE_LINE
    query = nn.functional.pad(query, (0, 0, 0, missing))
    if attn_mask is not None:
        attn_mask = attn_mask.expand(-1, -1, num_queries, -1)
        attn_mask = nn.functional.pad(attn_mask, (0, 0, 0, missing), value=attn_mask.dtype == torch.bool)
    if count * query.shape[1] == 1:  # threads would divide a single product
        query, key, value = (tensor.expand(2, -1, -1, -1) for tensor in (query, key, value))
        attn_mask = None if attn_mask is None else attn_mask.expand(2, -1, -1, -1)
    attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, **options)
    return attended[:count, :, :num_queries]


def _silu(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    wide = at_least_float32(input)
    return (wide * (0.5 + 0.5 * (0.5 * wide).tanh())).to(input.dtype)


def _gelu(input: torch.Tensor) -> torch.Tensor:
    wide = at_least_float32(input)
    return (0.5 * wide * (1 + (wide * 0.5**0.5).erf())).to(input.dtype)


def _softplus(input: torch.Tensor) -> torch.Tensor:
    wide = at_least_float32(input)
    return (wide.clamp(min=0) + wide.abs().neg().exp().log1p()).to(input.dtype)


_BATCH_INVARIANT: dict[Callable[..., Any], Callable[..., torch.Tensor]] = {
    nn.functional.linear: batch_invariant_linear,
    torch.matmul: _matmul,
    torch.Tensor.matmul: _matmul,
    nn.functional.scaled_dot_product_attention: _scaled_dot_product_attention,
    nn.functional.silu: _silu,
    nn.functional.gelu: _gelu,
    nn.functional.softplus: _softplus,
}
if HAS_ONEDNN_LINEAR:
    _BATCH_INVARIANT[torch.ops.mkldnn._linear_pointwise] = lambda input, weight, bias, *_: batch_invariant_linear(
        input, weight, bias
    )
