# SPDX-License-Identifier: Apache-2.0
"""Multi-scale deformable attention as one weighted gather-sum, fast on CPU and right everywhere.

Letters in shape comments: B batch, Q queries, H heads, L levels, P points, D head_dim, S = sum of level pixels,
N = B*Q*H bags, K = L*P samples of a bag, 4 corners of a sample, M = N*K.
"""

import torch
from kernels import use_kernel_forward_from_hub
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..precision import at_least_float32


@use_kernel_forward_from_hub("MultiScaleDeformableAttention")
class MultiScaleDeformableAttention(nn.Module):
    """The sampling core of deformable attention (Zhu et al. 2021, arXiv:2010.04159, eq. 3), without projections.

    Stateless, with the forward signature of the Hub kernel `kernels-community/deformable-detr`, which takes its place
    after [`use_kernels`]. The forward here needs no compiled extension: every (query, head) is a bag of
    levels * points * 4 pixels of the flattened value table, summed with bilinear times attention weights by one
    `embedding_bag`. Runs on any device, in eager mode, under `torch.compile(fullgraph=True)` and `torch.export`.
    """

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: list[tuple[int, int]],
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """Sum bilinear samples of all levels with the attention weights; samples outside a level read zeros.

        Args:
            value: `(batch, sum of height * width over levels, heads, head_dim)`, levels in order, row-major.
            value_spatial_shapes: `(levels, 2)` long, height and width of every level. Read by the Hub kernel only.
            value_spatial_shapes_list: the same as python integers.
            level_start_index: `(levels,)` long, first row of every level. Read by the Hub kernel only.
            sampling_locations: `(batch, queries, heads, levels, points, 2)`, x and y, 0..1 edge to edge.
            attention_weights: `(batch, queries, heads, levels, points)`.
            im2col_step: batch elements per launch of the Hub kernel; has to divide the batch there.

        Returns:
            `(batch, queries, heads * head_dim)`, heads outermost, in the dtype of `value`. Weights and positions are
            computed in the dtype of `sampling_locations`, at least in float32.

        Raises:
            ValueError: when the levels do not add up to the rows of `value` or a shape does not fit the others.
        """
        shapes = [(int(height), int(width)) for height, width in value_spatial_shapes_list]
        _check_shapes(value, shapes, sampling_locations, attention_weights)
        inputs = (value, sampling_locations, attention_weights)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
            return _DeformableAttention.apply(*inputs, shapes)
        return _attend(*_windows(value, sampling_locations, attention_weights, shapes)[:2], value)


class _DeformableAttention(torch.autograd.Function):
    """Forward as above; backward sorts the samples by pixel, so that it also consists of gather-sums only."""

    @staticmethod
    def forward(ctx, value, sampling_locations, attention_weights, shapes):
        index, weight, _ = _windows(value, sampling_locations, attention_weights, shapes)
        ctx.save_for_backward(value, sampling_locations, attention_weights, index, weight)
        ctx.shapes = shapes
        return _attend(index, weight, value)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        value, sampling_locations, attention_weights, index, weight = ctx.saved_tensors
        grad_bags = grad_output.reshape(index.shape[0], value.shape[-1]).to(weight.dtype)  # [N, D]
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


def _attend(index: Tensor, weight: Tensor, value: Tensor) -> Tensor:
    """Gather-sum the value table: index and weight `[N, K*4]` -> `[B, Q, H*D]`."""
    batch_size, _, num_heads, head_dim = value.shape
    table = value.reshape(-1, head_dim)  # [B*S*H, D]
    bags = F.embedding_bag(index, table, per_sample_weights=weight.to(value.dtype), mode="sum")
    return bags.view(batch_size, -1, num_heads * head_dim)


def _windows(
    value: Tensor, sampling_locations: Tensor, attention_weights: Tensor, shapes: list[tuple[int, int]]
) -> tuple[Tensor, Tensor, tuple["_Axis", "_Axis"]]:
    """The 2x2 pixels that each sample reads: rows of the value table and their weights, both `[N, K*4]`.

    A window is moved inside its level, and a pixel weighs `relu(1 - distance)` on either axis: that equals bilinear
    interpolation inside, and zero padding outside, without any masking.
    """
    batch_size, num_tokens, num_heads, _ = value.shape
    num_queries, num_points = sampling_locations.shape[1], sampling_locations.shape[4]
    heights, widths = [height for height, _ in shapes], [width for _, width in shapes]
    starts = _level_starts(shapes)[:-1]
    rows = batch_size * num_tokens * num_heads
    integer = torch.int32 if rows < 2**31 else torch.int64

    def per_sample(levels: list[float], dtype: torch.dtype) -> Tensor:  # one number a level -> [H*K]
        numbers = [number for number in levels for _ in range(num_points)] * num_heads
        return torch.tensor(numbers, dtype=dtype, device=value.device)

    locations = at_least_float32(sampling_locations).reshape(batch_size, num_queries, -1, 2)  # [B, Q, H*K, 2]
    attention = at_least_float32(attention_weights).reshape(batch_size, num_queries, -1)  # [B, Q, H*K]
    x = _Axis(locations[..., 0], widths, per_sample)
    y = _Axis(locations[..., 1], heights, per_sample)

    head = [start * num_heads + head for head in range(num_heads) for start in starts for _ in range(num_points)]
    top_left = y.low.to(integer).clamp_(min=0) * per_sample([width * num_heads for width in widths], integer)
    top_left += x.low.to(integer).clamp_(min=0) * num_heads
    top_left += torch.tensor(head, dtype=integer, device=value.device)
    top_left += (torch.arange(batch_size, dtype=integer, device=value.device) * (num_tokens * num_heads)).view(-1, 1, 1)
    # A level of one column (row) has no second one: its weight is zero, its index stays on the first.
    top_right = top_left + per_sample([num_heads if width > 1 else 0 for width in widths], integer)
    down = per_sample([width * num_heads if height > 1 else 0 for height, width in shapes], integer)
    index = torch.stack((top_left, top_right, top_left + down, top_right + down), dim=-1)

    top, bottom = y.first * attention, y.second * attention
    weight = torch.stack((top * x.first, top * x.second, bottom * x.first, bottom * x.second), dim=-1)
    num_bags = batch_size * num_queries * num_heads
    return index.view(num_bags, -1), weight.view(num_bags, -1), (x, y)


class _Axis:
    """One coordinate of every sample, in pixels: the first pixel of its window, the offset from it, both weights."""

    def __init__(self, locations: Tensor, sizes: list[int], per_sample) -> None:
        dtype = locations.dtype
        self.sizes = per_sample(sizes, dtype)
        pixel = (locations * self.sizes).sub_(0.5)
        # NaN stays NaN here; as an index it is clamped by the caller, so that it reaches the output as NaN.
        self.low = pixel.clamp(min=0).minimum(per_sample([max(size - 2, 0) for size in sizes], dtype)).floor_()
        self.offset = pixel.sub_(self.low)  # [0, 1) inside, [-1, 0) and [1, 2) where one pixel of two counts
        self.has_second = per_sample([float(size > 1) for size in sizes], dtype) if 1 in sizes else None
        self.first = torch.rsub(self.offset.abs(), 1).relu_()
        self.second = torch.rsub((self.offset - 1).abs_(), 1).relu_()
        if self.has_second is not None:
            self.second = self.second * self.has_second

    def slopes(self) -> tuple[Tensor, Tensor]:
        """Derivatives of both weights by the normalised location, from the right where they jump."""
        cell = self.offset.floor()
        inside, before, after = cell == 0, cell == -1, cell == 1
        first = (before.to(cell.dtype) - inside.to(cell.dtype)).mul_(self.sizes)
        second = (inside.to(cell.dtype) - after.to(cell.dtype)).mul_(self.sizes)
        return first, second if self.has_second is None else second * self.has_second


def _weight_gradient(grad_bags: Tensor, index: Tensor, value: Tensor) -> Tensor:
    """Scalar product of each bag's gradient with every table row that it read: `[N, K*4]`."""
    num_bags, bag_size = index.shape
    table = value.reshape(-1, value.shape[-1]).to(grad_bags.dtype)
    bag = torch.arange(num_bags, dtype=index.dtype, device=index.device)
    bag_of_sample = bag[:, None].expand(-1, bag_size).reshape(-1).contiguous()
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad_bags, table, index.reshape(-1), bag * bag_size, bag_of_sample, 0, -1
    ).view(num_bags, bag_size)


def _sample_gradients(grad_weight: Tensor, x: _Axis, y: _Axis, attention_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Chain rule through the corner weights: gradients of the sampling locations and of the attention weights."""
    top_left, top_right, bottom_left, bottom_right = grad_weight.view(*x.offset.shape, 4).unbind(-1)  # [B, Q, H*K]
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
    grad_bags: Tensor, index: Tensor, weight: Tensor, value_shape: torch.Size, shapes: list[tuple[int, int]]
) -> Tensor:
    """Gradient of the value table `[B, S, H, D]`, without atomics or a random scatter.

    Samples are sorted by the first pixel of their window; then the gradient of each of the four corners is again a
    gather-sum, over the bags that read it, and is shifted by its place in the window.
    """
    batch_size, num_tokens, num_heads, head_dim = value_shape
    samples_per_bag = index.shape[1] // 4
    top_left, order = torch.sort(index.view(-1, 4)[:, 0].contiguous())  # [M]
    rows = torch.arange(batch_size * num_tokens * num_heads, dtype=index.dtype, device=index.device)
    offsets = torch.searchsorted(top_left, rows)
    bags = order.div(samples_per_bag, rounding_mode="floor")
    corner_weights = weight.view(-1, 4).index_select(0, order).t().contiguous()  # [4, M]
    top_left, top_right, bottom_left, bottom_right = (
        F.embedding_bag(bags, grad_bags, offsets, per_sample_weights=weights, mode="sum").view(value_shape)
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


def _check_shapes(value, shapes, sampling_locations, attention_weights) -> None:
    num_tokens = _level_starts(shapes)[-1]
    if value.dim() != 4 or value.shape[1] != num_tokens:
        raise ValueError(
            f"value has shape {tuple(value.shape)}, but the levels {shapes} need "
            f"(batch, {num_tokens}, heads, head_dim): the rows are all levels' pixels in order."
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
