"""HVPL's video context encoder: frame queries exchange information along trees that join similar ones.

State-space layers scan a tree instead of a sequence (GrootV, Xiao et al. 2024, arXiv:2406.02395), over the grid of
frames and queries (HVPL, Dong et al. 2025, arXiv:2508.08612). B videos (times the frame-decoder layers in training),
T frames, F frame queries, C channels; a layer sees G grids of H rows and W columns, and D = 2 C inner channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from ...kernels import Linear, TreeScan, grid_edge_costs, minimum_spanning_trees

EXPANSION = 2  # inner channels per channel
CHANNELS_PER_STEP_RANK = 16
STEP_RANGE = (1e-3, 1e-1)  # of the initial step sizes
STEP_FLOOR = 1e-4

SCAN_AXES = ("frames_queries", "released")
ENCODER_SLICES = ("per_task", "joint")


class TreeStateSpace(nn.Module):
    """Gated selective state-space layer with one state per channel, scanned along the cheapest tree of each grid.

    From the scan's inputs to its normalised, gated result everything is float32 at least.
    """

    def __init__(self, hidden_dim: int):
        super().__init__()
        inner_dim = EXPANSION * hidden_dim
        self.step_rank = math.ceil(hidden_dim / CHANNELS_PER_STEP_RANK)
        self.in_proj = Linear(hidden_dim, 2 * inner_dim, bias=False)
        self.conv2d = nn.Conv2d(inner_dim, inner_dim, kernel_size=3, padding=1, groups=inner_dim, bias=False)
        self.x_proj = Linear(inner_dim, self.step_rank + 2, bias=False)
        self.dt_proj = Linear(self.step_rank, inner_dim)
        self.A_log = nn.Parameter(torch.zeros(inner_dim, 1))
        self.D = nn.Parameter(torch.ones(inner_dim))
        self.tree_scan = TreeScan()
        self.state_norm = nn.LayerNorm(inner_dim)
        self.output_norm = nn.LayerNorm(inner_dim)
        self.out_proj = Linear(inner_dim, hidden_dim, bias=False)

    def initialize_parameters(self) -> None:
        init.kaiming_uniform_(self.conv2d.weight, a=math.sqrt(5))
        init.zeros_(self.A_log)
        init.ones_(self.D)
        bound = self.step_rank**-0.5
        init.uniform_(self.dt_proj.weight, -bound, bound)
        # softplus of the bias is the step size: log-uniform
        low, high = (math.log(limit) for limit in STEP_RANGE)
        step = (torch.rand_like(self.dt_proj.bias) * (high - low) + low).exp().clamp(min=STEP_FLOOR)
        init.copy_(self.dt_proj.bias, step + torch.log(-torch.expm1(-step)))

    def forward(self, hidden_states: Tensor, group_widths: list[int] | None = None) -> Tensor:
        """(G, H, W, C) -> (G, H, W, C). Groups of columns do not see each other: neither the convolution nor a tree
        crosses from one to the next."""
        values, gate = self.in_proj(hidden_states).chunk(2, dim=-1)  # (G, H, W, D) each
        values = F.silu(self._convolve(values, group_widths))
        with torch.autocast(hidden_states.device.type, enabled=False):
            normalised = self._scan(_at_least_float32(values), group_widths)
            gated = normalised * F.silu(_at_least_float32(gate))
            return self.out_proj(gated.to(self.out_proj.weight.dtype))

    def _convolve(self, values: Tensor, group_widths: list[int] | None) -> Tensor:
        """Depthwise 3 x 3, zeros around every group: a column of zeros between two groups is the padding of both."""
        values = values.permute(0, 3, 1, 2)  # (G, D, H, W)
        if group_widths is None or len(group_widths) == 1:
            return self.conv2d(values).permute(0, 2, 3, 1)
        groups = torch.arange(len(group_widths)).repeat_interleave(torch.tensor(group_widths))
        columns = (torch.arange(values.shape[-1]) + groups).to(values.device)
        spread = values.new_zeros((*values.shape[:-1], values.shape[-1] + len(group_widths) - 1))
        convolved = self.conv2d(spread.index_copy(3, columns, values))
        return convolved.index_select(3, columns).permute(0, 2, 3, 1)

    def _scan(self, values: Tensor, group_widths: list[int] | None) -> Tensor:
        """(G, H, W, D) -> normalised read-out of the states, (G, H, W, D)"""
        dtype = values.dtype
        costs = grid_edge_costs(values, group_widths)
        trees = minimum_spanning_trees(costs, values.shape[1], values.shape[2], group_widths)
        nodes = values.flatten(1, 2)  # (G, H * W, D)
        steps, write, read = F.linear(nodes, self.x_proj.weight.to(dtype)).split((self.step_rank, 1, 1), dim=-1)
        steps = F.softplus(F.linear(steps, self.dt_proj.weight.to(dtype), self.dt_proj.bias.to(dtype)))
        decay = torch.exp(steps * -self.A_log.to(dtype).exp().squeeze(1))  # of the edge to the parent
        states = self.tree_scan(steps * nodes * write, decay, trees)
        outputs = _layer_norm(states, self.state_norm) * read + self.D.to(dtype) * nodes
        return _layer_norm(outputs, self.output_norm).view_as(values)


class ContextEncoderLayer(GradientCheckpointingLayer):
    """Tree state space and feed-forward, each on normalised inputs and added to them.

    Args:
        drop_path: probability with which, in training, a branch is left out for one of the G grids; kept branches are
            scaled up in return.
    """

    def __init__(self, hidden_dim: int, dim_feedforward: int, drop_path: float = 0.0):
        super().__init__()
        self.state_space_layer_norm = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.state_space = TreeStateSpace(hidden_dim)
        self.final_layer_norm = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.fc1 = Linear(hidden_dim, dim_feedforward)
        self.fc2 = Linear(dim_feedforward, hidden_dim)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, hidden_states: Tensor, group_widths: list[int] | None = None) -> Tensor:
        """(G, H, W, C) -> (G, H, W, C)"""
        scanned = self.state_space(self.state_space_layer_norm(hidden_states), group_widths)
        hidden_states = hidden_states + self.drop_path(scanned)
        transformed = self.fc2(F.gelu(self.fc1(self.final_layer_norm(hidden_states))))
        return hidden_states + self.drop_path(transformed)


class ContextEncoder(nn.Module):
    """Layers of tree state spaces over the frame queries of a clip; takes the place of VITA's object encoder.

    Args:
        drop_path_rate: of the last layer; it rises linearly from 0 in the first.
        scan_axes: "frames_queries": a grid is the frames (rows) and queries (columns) of one video, so that trees link
            queries of different frames. "released": a grid is the queries (rows) and videos (columns) of one frame.
            That is what the released code computes: nothing passes between frames, and videos of a batch mix. For
            released weights.
        encoder_slices: "per_task": queries of different tasks do not see each other, so that a new task leaves what an
            older one computes untouched, and a prompt sees at inference what it saw in training. "joint": all queries
            share one grid, as in the released code. For released weights.

    Raises:
        ValueError: an unknown choice.
    """

    def __init__(
        self,
        num_layers: int,
        hidden_dim: int,
        dim_feedforward: int,
        drop_path_rate: float = 0.2,
        scan_axes: str = "frames_queries",
        encoder_slices: str = "per_task",
    ):
        super().__init__()
        for name, value, choices in (
            ("scan_axes", scan_axes, SCAN_AXES),
            ("encoder_slices", encoder_slices, ENCODER_SLICES),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, choices))}.")
        self.scan_axes = scan_axes
        self.encoder_slices = encoder_slices
        rates = torch.linspace(0, drop_path_rate, num_layers, device="cpu").tolist()
        self.layers = nn.ModuleList(ContextEncoderLayer(hidden_dim, dim_feedforward, rate) for rate in rates)

    def forward(self, frame_queries: Tensor, group_sizes: list[int] | None = None) -> Tensor:
        """Inform the queries of each frame by the others.

        Args:
            frame_queries: (B, T, F, C)
            group_sizes: queries of each task, in order; they add up to F. None for one group.

        Returns:
            (B, T, F, C)
        """
        groups = group_sizes if self.encoder_slices == "per_task" else None
        if self.scan_axes == "frames_queries":
            return self._encode(frame_queries, groups)
        # The tasks are rows here; only columns can be kept apart within one call.
        slices = frame_queries.split(groups, dim=2) if groups else [frame_queries]
        encoded = [self._encode(queries.permute(1, 2, 0, 3)).permute(2, 0, 1, 3) for queries in slices]
        return torch.cat(encoded, dim=2)

    def _encode(self, hidden_states: Tensor, group_widths: list[int] | None = None) -> Tensor:
        """(G, H, W, C) -> (G, H, W, C)"""
        for layer in self.layers:
            hidden_states = layer(hidden_states, group_widths)
        return hidden_states


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _layer_norm(tensor: Tensor, norm: nn.LayerNorm) -> Tensor:
    """`norm` in the type of `tensor`, whatever the type of its weights."""
    dtype = tensor.dtype
    return F.layer_norm(tensor, norm.normalized_shape, norm.weight.to(dtype), norm.bias.to(dtype), norm.eps)
