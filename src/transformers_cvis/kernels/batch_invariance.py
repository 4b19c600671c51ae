# SPDX-License-Identifier: Apache-2.0
"""Inference whose result for one element of a batch is the same to the last bit, however many elements there are.

Ordinary CPU kernels do not promise that: threads divide a matrix product between its rows, and rows that do not fill
the height of a kernel are summed in another order; attention works in memory of each thread, whose alignment decides
how products are summed; activations are evaluated by other code where a thread's share of the numbers does not fill a
vector. What follows makes each of them do the same work for every element:

- products are batched, with one matrix per element of the batch. With at least one matrix per thread none is divided;
  missing ones are zeros, on threads that have no other work. Single rows and columns get another one of zeros, as
  products with vectors have code of their own;
- attention gets rows of queries by the cache line, so that the memory of every thread is aligned alike;
- activations are made of functions of one argument (exp, tanh, erf, log1p), which PyTorch evaluates by one and the same
  vector code wherever a number stands.

Sums, norms over channels, depthwise convolutions, arithmetic of two tensors and indexing are exact as they are.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..precision import at_least_float32
from .linear import HAS_ONEDNN_LINEAR

ROWS_OF_A_CACHE_LINE = 16  # times 4 bytes, the smallest type that attention works in


class BatchInvariance(TorchFunctionMode):
    """Context in which linear layers, matrix products, attention, SiLU, GELU and softplus are batch-invariant on CPU.

    The first axis of the first argument counts the elements. Gradients flow as usual; results agree with those outside
    to rounding. Other devices, and code that `torch.compile` makes, keep their usual functions.

    Example:
        >>> layer, states = torch.nn.Linear(8, 8), torch.randn(5, 3, 8)
        >>> with BatchInvariance():
        ...     torch.equal(layer(states)[:2], layer(states[:2]))
        True
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if not torch.compiler.is_compiling() and function in _BATCH_INVARIANT and args[0].device.type == "cpu":
            function = _BATCH_INVARIANT[function]
        return function(*args, **(kwargs or {}))


def batch_invariant_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`nn.functional.linear`, batch-invariant on CPU.

    Args:
        input: `(B, ..., in)`
        weight: `(out, in)`, or one per element `(B, out, in)`
        bias: `(out,)`, or `(B, out)`

    Returns:
        `(B, ..., out)`
    """
    rows = input.reshape(len(input), -1, input.shape[-1])
    products = _products(rows, weight.expand(len(input), -1, -1).transpose(1, 2))
    if bias is not None:
        products = products + bias.expand(len(input), -1)[:, None]
    return products.unflatten(1, input.shape[1:-1]) if input.dim() > 2 else products[:, 0]


def _matmul(input: Tensor, other: Tensor) -> Tensor:
    """`(B, rows, inner)` times `(inner, columns)` or `(B, inner, columns)`"""
    return _products(input, other.expand(len(input), -1, -1))


def _products(left: Tensor, right: Tensor) -> Tensor:
    """(B, rows, inner) times (B, inner, columns)"""
    count, num_rows, num_columns = len(left), left.shape[1], right.shape[2]
    missing = max(0, torch.get_num_threads() - count) if left.device.type == "cpu" else 0
    if missing or num_rows == 1:
        left = F.pad(left, (0, 0, 0, num_rows == 1, 0, missing))
    if num_columns == 1:
        right = F.pad(right, (0, 1))
    if missing:
        shared = count == 1 or right.stride(0) == 0
        right = right[:1].expand(len(left), -1, -1) if shared else _filled_up(right, missing)
    return torch.bmm(left, right)[:count, :num_rows, :num_columns]


def _filled_up(matrices: Tensor, missing: int) -> Tensor:
    """With as many matrices of zeros behind, each in the memory order that it has."""
    if matrices.stride(1) < matrices.stride(2):
        return _filled_up(matrices.mT, missing).mT
    return F.pad(matrices, (0, 0, 0, 0, 0, missing))


def _scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask=None, **options) -> Tensor:
    """Of `(B, heads, length, channels)`; a mask is `(B, 1 or heads, queries or 1, keys)`."""
    count, num_queries = len(query), query.shape[2]
    missing = -num_queries % ROWS_OF_A_CACHE_LINE
    query = F.pad(query, (0, 0, 0, missing))
    if attn_mask is not None:
        attn_mask = attn_mask.expand(-1, -1, num_queries, -1)
        attn_mask = F.pad(attn_mask, (0, 0, 0, missing), value=attn_mask.dtype == torch.bool)
    if count * query.shape[1] == 1:  # a single product would be divided between the threads
        query, key, value, attn_mask = (
            None if tensor is None else tensor.expand(2, -1, -1, -1) for tensor in (query, key, value, attn_mask)
        )
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, **options)
    return attended[:count, :, :num_queries]


def _silu(input: Tensor, inplace: bool = False) -> Tensor:
    wide = at_least_float32(input)
    return (wide * (0.5 + 0.5 * (0.5 * wide).tanh())).to(input.dtype)


def _gelu(input: Tensor) -> Tensor:
    wide = at_least_float32(input)
    return (0.5 * wide * (1 + (wide * 0.5**0.5).erf())).to(input.dtype)


def _softplus(input: Tensor) -> Tensor:
    wide = at_least_float32(input)
    return (wide.clamp(min=0) + wide.abs().neg().exp().log1p()).to(input.dtype)


_BATCH_INVARIANT = {
    F.linear: batch_invariant_linear,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    F.scaled_dot_product_attention: _scaled_dot_product_attention,
    F.silu: _silu,
    F.gelu: _gelu,
    F.softplus: _softplus,
}
if HAS_ONEDNN_LINEAR:
    _BATCH_INVARIANT[torch.ops.mkldnn._linear_pointwise] = lambda input, weight, bias, *_: batch_invariant_linear(
        input, weight, bias
    )
