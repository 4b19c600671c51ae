# SPDX-License-Identifier: Apache-2.0
"""HVPL's video context encoder: frame queries exchange information along trees that join similar ones.

State-space layers scan a tree instead of a sequence (GrootV, Xiao et al. 2024, arXiv:2406.02395), over the grid of
frames and queries (HVPL, Dong et al. 2025, arXiv:2508.08612).

B videos (times L frame-decoder layers in training), T frames, F frame queries, C channels. A layer reads N grids of
`rows` x `columns` queries; inside it has 2 C channels, written `inner`.
"""

import math

import torch
from torch import nn
from torchvision.ops import StochasticDepth
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from ...kernels import Linear, TreeScan, grid_edge_costs, minimum_spanning_trees
from ...messages import check_choice
from ...precision import at_least_float32

EXPANSION = 2  # inner channels per channel
CHANNELS_PER_STEP_RANK = 16
STEP_RANGE = (1e-3, 1e-1)  # of the initial step sizes
STEP_FLOOR = 1e-4

SCAN_AXES = ("frames_queries", "released")


class TreeStateSpace(nn.Module):
    """Gated selective state-space layer with one state per channel, scanned along the minimum spanning tree of a grid.

    The scan, its inputs, and the normalisation and gating of its result are computed in float32 or a wider type.
    """

    def __init__(self, hidden_dim: int) -> None:
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
        """Initialise the convolution, the state space, and the step sizes, which start log-uniform in `STEP_RANGE`."""
        init.kaiming_uniform_(self.conv2d.weight, a=math.sqrt(5))
        init.zeros_(self.A_log)
        init.ones_(self.D)
        bound = self.step_rank**-0.5
        init.uniform_(self.dt_proj.weight, -bound, bound)
        # The softplus of the bias is the step size.
        low, high = (math.log(limit) for limit in STEP_RANGE)
        step = (torch.rand_like(self.dt_proj.bias) * (high - low) + low).exp().clamp(min=STEP_FLOOR)
        init.copy_(self.dt_proj.bias, step + torch.log(-torch.expm1(-step)))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Scan grids of queries: `(N, rows, columns, C)` to `(N, rows, columns, C)`."""
        values, gate = self.in_proj(hidden_states).chunk(2, dim=-1)  # (N, rows, columns, inner) each
        values = nn.functional.silu(self.conv2d(values.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        with torch.autocast(hidden_states.device.type, enabled=False):
            normalised = self._scan(at_least_float32(values))
            gated = normalised * nn.functional.silu(at_least_float32(gate))
            return self.out_proj(gated.to(self.out_proj.weight.dtype))

    def _scan(self, values: torch.Tensor) -> torch.Tensor:
        """Return the normalised read-out of the states: `(N, rows, columns, inner)` to the same shape."""
        dtype = values.dtype
        trees = minimum_spanning_trees(grid_edge_costs(values), values.shape[1], values.shape[2])
        nodes = values.flatten(1, 2)  # (N, rows * columns, inner)
        steps, write, read = nn.functional.linear(nodes, self.x_proj.weight.to(dtype)).split(
            (self.step_rank, 1, 1), dim=-1
        )
        steps = nn.functional.softplus(
            nn.functional.linear(steps, self.dt_proj.weight.to(dtype), self.dt_proj.bias.to(dtype))
        )
        decay = torch.exp(steps * -self.A_log.to(dtype).exp().squeeze(1))  # of the edge to the parent
        states = self.tree_scan(steps * nodes * write, decay, trees)
        outputs = _layer_norm(states, self.state_norm) * read + self.D.to(dtype) * nodes
        return _layer_norm(outputs, self.output_norm).view_as(values)


class ContextEncoderLayer(GradientCheckpointingLayer):
    """Tree state space, then feed-forward: each reads normalised inputs and is added to the inputs.

    Args:
        hidden_dim: channels C.
        dim_feedforward: channels inside the feed-forward layers.
        drop_path: probability of leaving out a branch for one grid in training; kept branches are scaled up in return.
    """

    def __init__(self, hidden_dim: int, dim_feedforward: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.state_space_layer_norm = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.state_space = TreeStateSpace(hidden_dim)
        self.final_layer_norm = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.fc1 = Linear(hidden_dim, dim_feedforward)
        self.fc2 = Linear(dim_feedforward, hidden_dim)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Transform grids of queries: `(N, rows, columns, C)` to `(N, rows, columns, C)`."""
        scanned = self.state_space(self.state_space_layer_norm(hidden_states))
        hidden_states = hidden_states + self.drop_path(scanned)
        transformed = self.fc2(nn.functional.gelu(self.fc1(self.final_layer_norm(hidden_states))))
        return hidden_states + self.drop_path(transformed)


class ContextEncoder(nn.Module):
    """Layers of tree state spaces over the frame queries of a clip, in place of VITA's object encoder.

    Args:
        num_layers: number of layers.
        hidden_dim: channels C.
        dim_feedforward: channels inside the feed-forward layers.
        drop_path_rate: that of the last layer; it rises linearly from 0 in the first.
        scan_axes: "frames_queries" makes a grid of the frames (rows) and queries (columns) of one video, so that trees
            link queries of different frames. "released" makes a grid of the queries (rows) and videos (columns) of one
            frame, like the released code: frames exchange nothing, and the videos of a batch mix. Use it with
            released weights.

    Raises:
        ValueError: `scan_axes` is unknown.
    """

    def __init__(
        self,
        num_layers: int,
        hidden_dim: int,
        dim_feedforward: int,
        drop_path_rate: float = 0.2,
        scan_axes: str = "frames_queries",
    ) -> None:
        super().__init__()
        check_choice("scan_axes", scan_axes, SCAN_AXES)
        self.scan_axes = scan_axes
        rates = torch.linspace(0, drop_path_rate, num_layers, device="cpu").tolist()
        self.layers = nn.ModuleList(ContextEncoderLayer(hidden_dim, dim_feedforward, rate) for rate in rates)

    def forward(self, frame_queries: torch.Tensor) -> torch.Tensor:
        """Exchange information between the frame queries of a clip.

        Args:
            frame_queries: `(B, T, F, C)`; or `(tasks, B, T, F, C)` for several tasks, which exchange nothing.

        Returns:
            The encoded frame queries, in the shape of `frame_queries`.
        """
        if self.scan_axes == "released":
            return self._encode(frame_queries.movedim(-4, -2)).movedim(-2, -4)
        return self._encode(frame_queries)

    def _encode(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Run the layers on grids `(..., rows, columns, C)`; return the same shape."""
        grids = hidden_states.flatten(0, -4)
        for layer in self.layers:
            grids = layer(grids)
        return grids.unflatten(0, hidden_states.shape[:-3])


def _layer_norm(tensor: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    """Apply `norm` in the dtype of `tensor`, to which its weights are cast."""
    dtype = tensor.dtype
    return nn.functional.layer_norm(tensor, norm.normalized_shape, norm.weight.to(dtype), norm.bias.to(dtype), norm.eps)
