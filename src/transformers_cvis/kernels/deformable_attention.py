# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention as one weighted gather-sum, fast on CPU and correct on every device.

Letters in shapes: B batch, Q queries, H heads, L levels, P points, D channels of a head, S sum of the pixels of all
levels, N = B*Q*H bags, K = L*P samples of a bag (of 4 corners each), M = N*K samples.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from kernels import use_kernel_forward_from_hub
from torch import nn
from torch.autograd.function import once_differentiable

from ..precision import at_least_float32


@use_kernel_forward_from_hub("MultiScaleDeformableAttention")
class MultiScaleDeformableAttention(nn.Module):
    """Sampling core of deformable attention (Zhu et al. 2021, arXiv:2010.04159, eq. 3), without projections.

    The module has no weights. Its forward has the signature of the Hub kernel `kernels-community/deformable-detr`,
    which replaces it after [`use_kernels`]. The forward here needs no compiled extension: for every pair of query and
    head, one `embedding_bag` sums L * P * 4 pixels of the flattened values, weighted by bilinear times attention
    weights. It runs on any device, in eager mode, under `torch.compile(fullgraph=True)` and under `torch.export`.

    Example:
    ```python
    >>> import torch
    >>> from transformers_cvis.kernels import MultiScaleDeformableAttention

    >>> shapes = [(4, 6), (2, 3)]  # two levels: 24 + 6 pixels
    >>> value = torch.randn(1, 30, 2, 8)  # two heads of 8 channels
    >>> locations = torch.rand(1, 5, 2, 2, 4, 2)  # 5 queries, 4 points in each level
    >>> weights = torch.full((1, 5, 2, 2, 4), 1 / 8)
    >>> attention = MultiScaleDeformableAttention()
    >>> attention(value, torch.tensor(shapes), shapes, torch.tensor([0, 24]), locations, weights, 64).shape
    torch.Size([1, 5, 16])

    ```
    """

    def forward(
        self,
        value: torch.Tensor,
        value_spatial_shapes: torch.Tensor,
        value_spatial_shapes_list: list[tuple[int, int]],
        level_start_index: torch.Tensor,
        sampling_locations: torch.Tensor,
        attention_weights: torch.Tensor,
        im2col_step: int,
    ) -> torch.Tensor:
        """Sum bilinear samples of all levels with the attention weights; samples outside a level read zeros.

        Args:
            value: values of the pixels `(B, S, H, D)`: all levels in order, each row by row.
            value_spatial_shapes: height and width of every level `(L, 2)`, int64. Only the Hub kernel reads it.
            value_spatial_shapes_list: height and width of every level, as Python integers.
            level_start_index: first row of every level in `value`, `(L,)`, int64. Only the Hub kernel reads it.
            sampling_locations: x and y of every sample `(B, Q, H, L, P, 2)`, 0 to 1 from edge to edge.
            attention_weights: weight of every sample `(B, Q, H, L, P)`.
            im2col_step: batch elements per launch of the Hub kernel, which must divide B there.

        Returns:
            Tensor `(B, Q, H * D)` with the channels of the first head first, in the dtype of `value`. Weights and
            positions are computed in the dtype of `sampling_locations`, at least in float32.

        Raises:
            ValueError: the levels do not add up to the rows of `value`, or a shape does not fit the others.
        """
        shapes = [(int(height), int(width)) for height, width in value_spatial_shapes_list]
        _check_shapes(value, shapes, sampling_locations, attention_weights)
        inputs = (value, sampling_locations, attention_weights)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
            return _DeformableAttention.apply(*inputs, shapes)
        return _attend(*_windows(value, sampling_locations, attention_weights, shapes)[:2], value)


class _DeformableAttention(torch.autograd.Function):
    """Autograd function of the gather-sum. The backward sorts the samples by pixel, and so needs only gather-sums."""

    @staticmethod
    def forward(
        ctx: Any,
        value: torch.Tensor,
        sampling_locations: torch.Tensor,
        attention_weights: torch.Tensor,
        shapes: list[tuple[int, int]],
    ) -> torch.Tensor:
        index, weight, _ = _windows(value, sampling_locations, attention_weights, shapes)
        ctx.save_for_backward(value, sampling_locations, attention_weights, index, weight)
        ctx.shapes = shapes
        return _attend(index, weight, value)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_output: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, None]:
        value, sampling_locations, attention_weights, index, weight = ctx.saved_tensors
        grad_bags = grad_output.reshape(index.shape[0], value.shape[-1]).to(weight.dtype)  # (N, D)
        grad_value = grad_locations = grad_attention = None
        if ctx.needs_input_grad[0]:
            grad_value = _value_gradient(grad_bags, index, weight, value.shape, ctx.shapes).to(value.dtype)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            grad_weight = _weight_gradient(grad_bags, index, value)
            axes = _windows(value, sampling_locations, attention_weights, ctx.shapes)[2]
            grad_locations, grad_attention = _sample_gradients(grad_weight, *axes, attention_weights)
            grad_locations = grad_locations.to(sampling_locations.dtype)
            grad_attention = grad_attention.to(attention_weights.dtype)
        return grad_value, grad_locations, grad_attention, None


def _attend(index: torch.Tensor, weight: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Sum the rows of the value table with `index` and `weight` `(N, K*4)`, and return `(B, Q, H*D)`."""
    batch_size, _, num_heads, head_dim = value.shape
    table = value.reshape(-1, head_dim)  # (B*S*H, D)
    bags = nn.functional.embedding_bag(index, table, per_sample_weights=weight.to(value.dtype), mode="sum")
    return bags.view(batch_size, -1, num_heads * head_dim)


def _windows(
    value: torch.Tensor,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
    shapes: list[tuple[int, int]],
) -> tuple[torch.Tensor, torch.Tensor, tuple["_Axis", "_Axis"]]:
    """Compute the 2x2 pixels that each sample reads.

    A window is moved inside its level, and a pixel weighs `relu(1 - distance)` along each axis. That equals bilinear
    interpolation inside the level, and zero padding outside, without any masking.

    Returns:
        The rows of the value table `(N, K*4)`, their weights `(N, K*4)`, and the x and y axes of the samples.
    """
    batch_size, num_tokens, num_heads, _ = value.shape
    num_queries, num_points = sampling_locations.shape[1], sampling_locations.shape[4]
    heights, widths = [height for height, _ in shapes], [width for _, width in shapes]
    starts = _level_starts(shapes)[:-1]
    rows = batch_size * num_tokens * num_heads
    integer = torch.int32 if rows < 2**31 else torch.int64

    def per_sample(levels: Sequence[float], dtype: torch.dtype) -> torch.Tensor:  # one number per level -> (H*K,)
        numbers = [number for number in levels for _ in range(num_points)] * num_heads
        return torch.tensor(numbers, dtype=dtype, device=value.device)

    locations = at_least_float32(sampling_locations).reshape(batch_size, num_queries, -1, 2)  # (B, Q, H*K, 2)
    attention = at_least_float32(attention_weights).reshape(batch_size, num_queries, -1)  # (B, Q, H*K)
    x = _Axis(locations[..., 0], widths, per_sample)
    y = _Axis(locations[..., 1], heights, per_sample)

    head = [start * num_heads + head for head in range(num_heads) for start in starts for _ in range(num_points)]
    top_left = y.low.to(integer).clamp_(min=0) * per_sample([width * num_heads for width in widths], integer)
    top_left += x.low.to(integer).clamp_(min=0) * num_heads
    top_left += torch.tensor(head, dtype=integer, device=value.device)
    top_left += (torch.arange(batch_size, dtype=integer, device=value.device) * (num_tokens * num_heads)).view(-1, 1, 1)
    # A level of one column (row) has no second one: the index stays on the first, with a weight of zero.
    top_right = top_left + per_sample([num_heads if width > 1 else 0 for width in widths], integer)
    down = per_sample([width * num_heads if height > 1 else 0 for height, width in shapes], integer)
    index = torch.stack((top_left, top_right, top_left + down, top_right + down), dim=-1)

    top, bottom = y.first * attention, y.second * attention
    weight = torch.stack((top * x.first, top * x.second, bottom * x.first, bottom * x.second), dim=-1)
    num_bags = batch_size * num_queries * num_heads
    return index.view(num_bags, -1), weight.view(num_bags, -1), (x, y)


class _Axis:
    """One coordinate of every sample in pixels: the first pixel of its window, the offset from it, and both weights.

    Args:
        locations: coordinates `(B, Q, H*K)`, 0 to 1 from edge to edge.
        sizes: length of every level along this axis, in pixels.
        per_sample: repeats one number per level for the samples of all heads, in a dtype, as a tensor `(H*K,)`.
    """

    def __init__(
        self,
        locations: torch.Tensor,
        sizes: Sequence[int],
        per_sample: Callable[[Sequence[float], torch.dtype], torch.Tensor],
    ) -> None:
        dtype = locations.dtype
        self.sizes = per_sample(sizes, dtype)
        pixel = (locations * self.sizes).sub_(0.5)
        # NaN stays NaN here. The caller clamps the index, and the weight carries NaN to the output.
        self.low = pixel.clamp(min=0).minimum(per_sample([max(size - 2, 0) for size in sizes], dtype)).floor_()
        self.offset = pixel.sub_(self.low)  # [0, 1) inside, [-1, 0) or [1, 2) if only one pixel counts
        self.has_second = per_sample([float(size > 1) for size in sizes], dtype) if 1 in sizes else None
        self.first = torch.rsub(self.offset.abs(), 1).relu_()
        self.second = torch.rsub((self.offset - 1).abs_(), 1).relu_()
        if self.has_second is not None:
            self.second = self.second * self.has_second

    def slopes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the derivatives of both weights by the normalised location, from the right where they jump."""
        cell = self.offset.floor()
        inside, before, after = cell == 0, cell == -1, cell == 1
        first = (before.to(cell.dtype) - inside.to(cell.dtype)).mul_(self.sizes)
        second = (inside.to(cell.dtype) - after.to(cell.dtype)).mul_(self.sizes)
        return first, second if self.has_second is None else second * self.has_second


def _weight_gradient(grad_bags: torch.Tensor, index: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Compute the scalar products `(N, K*4)` of each bag's gradient with the table rows that the bag reads."""
    num_bags, bag_size = index.shape
    table = value.reshape(-1, value.shape[-1]).to(grad_bags.dtype)
    bag = torch.arange(num_bags, dtype=index.dtype, device=index.device)
    bag_of_sample = bag[:, None].expand(-1, bag_size).reshape(-1).contiguous()
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad_bags, table, index.reshape(-1), bag * bag_size, bag_of_sample, 0, -1
    ).view(num_bags, bag_size)


def _sample_gradients(
    grad_weight: torch.Tensor, x: _Axis, y: _Axis, attention_weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply the chain rule to the corner weights; return the gradients of locations and attention weights."""
    top_left, top_right, bottom_left, bottom_right = grad_weight.view(*x.offset.shape, 4).unbind(-1)  # (B, Q, H*K)
    top = x.first * top_left + x.second * top_right
    bottom = x.first * bottom_left + x.second * bottom_right
    grad_attention = y.first * top + y.second * bottom

    attention = attention_weights.reshape(x.offset.shape).to(top.dtype)
    left_slope, right_slope = x.slopes()
    top_slope, bottom_slope = y.slopes()
    left = y.first * top_left + y.second * bottom_left
    right = y.first * top_right + y.second * bottom_right
    grad_x = (left_slope * left + right_slope * right) * attention
    grad_y = (top_slope * top + bottom_slope * bottom) * attention
    grad_locations = torch.stack((grad_x, grad_y), dim=-1)
    return grad_locations.view(*attention_weights.shape, 2), grad_attention.view(attention_weights.shape)


def _value_gradient(
    grad_bags: torch.Tensor,
    index: torch.Tensor,
    weight: torch.Tensor,
    value_shape: torch.Size,
    shapes: list[tuple[int, int]],
) -> torch.Tensor:
    """Compute the gradient of the value table `(B, S, H, D)`, without atomics or a random scatter.

    The samples are sorted by the first pixel of their window. The gradient of each of the four corners is then a
    gather-sum over the bags that read it, shifted by the place of the corner in the window.
    """
    batch_size, num_tokens, num_heads, _ = value_shape
    samples_per_bag = index.shape[1] // 4
    top_left, order = torch.sort(index.view(-1, 4)[:, 0].contiguous())  # (M,)
    rows = torch.arange(batch_size * num_tokens * num_heads, dtype=index.dtype, device=index.device)
    offsets = torch.searchsorted(top_left, rows)
    bags = order.div(samples_per_bag, rounding_mode="floor")
    corner_weights = weight.view(-1, 4).index_select(0, order).t().contiguous()  # (4, M)
    top_left, top_right, bottom_left, bottom_right = (
        nn.functional.embedding_bag(bags, grad_bags, offsets, per_sample_weights=weights, mode="sum").view(value_shape)
        for weights in corner_weights
    )
    gradient = top_left
    gradient[:, 1:] += top_right[:, :-1]
    starts = _level_starts(shapes)
    for (height, width), start, end in zip(shapes, starts[:-1], starts[1:], strict=True):
        if height > 1:
            gradient[:, start + width : end] += bottom_left[:, start : end - width]
            gradient[:, start + width + 1 : end] += bottom_right[:, start : end - width - 1]
    return gradient


def _level_starts(shapes: list[tuple[int, int]]) -> list[int]:
    starts = [0]
    for height, width in shapes:
        starts.append(starts[-1] + height * width)
    return starts


def _check_shapes(
    value: torch.Tensor,
    shapes: list[tuple[int, int]],
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> None:
    num_tokens = _level_starts(shapes)[-1]
    if value.dim() != 4 or value.shape[1] != num_tokens:
        raise ValueError(
            f"value has shape {tuple(value.shape)}, but the levels {shapes} need "
            f"(batch, {num_tokens}, heads, head_dim), with the pixels of all levels in order."
        )
    batch_size, _, num_heads, _ = value.shape
    given = tuple(sampling_locations.shape)
    if len(given) != 6 or (given[0], given[2], given[3], given[5]) != (batch_size, num_heads, len(shapes), 2):
        raise ValueError(
            f"sampling_locations has shape {given}, expected "
            f"({batch_size}, queries, {num_heads}, {len(shapes)}, points, 2)."
        )
    if tuple(attention_weights.shape) != given[:-1]:
        raise ValueError(
            f"attention_weights has shape {tuple(attention_weights.shape)}, expected {given[:-1]}, "
            "the shape of sampling_locations without its last axis."
        )
