# SPDX-License-Identifier: Apache-2.0
"""Aggregation along the paths of trees that span grids: building the trees, and the scan up and down them.

Letters in shapes: B grids of H rows and W columns, N = H*W nodes of a grid, numbered row by row, E edges between
4-neighbours, C channels.
"""

from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from kernels import use_kernel_forward_from_hub
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from torch import nn
from torch.autograd.function import once_differentiable

from ..precision import at_least_float32, at_least_float32_dtype


class SpanningTrees(NamedTuple):
    """Spanning trees of B grids, in the order of one walk from their roots that visits all trees at once.

    Nodes are numbered across all grids: `grid * N + row * W + column`. The root of a tree is in its middle, where a
    walk takes the fewest steps; sums along paths do not depend on the root.

    Attributes:
        nodes: the nodes `(B*N,)`, int64, by rising distance from the root of their tree.
        parents: the parent of each of `nodes` `(B*N,)`, int64; -1 for a root.
        edges: the row of the weights for the edge from each of `nodes` to its parent `(B*N,)`, int64. Weights are
            numbered as if each tree had its root in the top left node: an edge has the number of its end further from
            there. A root has no edge; its entry is the unused row of the top left node.
        level_sizes: number of nodes at distance 0, 1, 2, ... from their roots; the sum is B*N.
    """

    nodes: torch.Tensor
    parents: torch.Tensor
    edges: torch.Tensor
    level_sizes: list[int]


def grid_edge_costs(guide: torch.Tensor) -> torch.Tensor:
    """Compute the costs `exp(-cosine similarity)` of edges, so that a cheapest tree joins similar neighbours.

    Args:
        guide: features `(B, H, W, C)`, from which no gradient flows.

    Returns:
        Costs `(B, E)`, float64 for a float64 guide, otherwise float32: all vertical edges row by row, then all
        horizontal ones.

    Example:
    ```python
    >>> import torch
    >>> from transformers_cvis.kernels import grid_edge_costs

    >>> grid_edge_costs(torch.randn(2, 3, 4, 8)).shape  # 2 * 4 vertical and 3 * 3 horizontal edges
    torch.Size([2, 17])

    ```
    """
    guide = at_least_float32(guide.detach())
    vertical = nn.functional.cosine_similarity(guide[:, :-1], guide[:, 1:], dim=-1, eps=1e-8)  # (B, H-1, W)
    horizontal = nn.functional.cosine_similarity(guide[:, :, :-1], guide[:, :, 1:], dim=-1, eps=1e-8)  # (B, H, W-1)
    return torch.cat((vertical.flatten(1), horizontal.flatten(1)), dim=1).neg_().exp_()


@lru_cache(maxsize=64)
def grid_edges(height: int, width: int) -> np.ndarray:
    """Return the two nodes of every edge of a grid.

    Args:
        height: rows of the grid.
        width: columns of the grid.

    Returns:
        Read-only array `(E, 2)`, int64, in the order of [`grid_edge_costs`].
    """
    nodes = np.arange(height * width).reshape(height, width)
    vertical = np.stack((nodes[:-1].ravel(), nodes[1:].ravel()), axis=1)
    horizontal = np.stack((nodes[:, :-1].ravel(), nodes[:, 1:].ravel()), axis=1)
    edges = np.concatenate((vertical, horizontal))
    edges.setflags(write=False)
    return edges


def minimum_spanning_trees(edge_costs: torch.Tensor, height: int, width: int) -> SpanningTrees:
    """Build the cheapest spanning tree of every grid; among edges of equal cost the earlier one is taken.

    The result is that of Kruskal's algorithm with a stable sort. It is computed on the CPU (by scipy) for all grids in
    one call, and only the order of the costs is copied there.

    Args:
        edge_costs: costs `(B, E)` on any device, in the order of [`grid_edge_costs`].
        height: rows of a grid.
        width: columns of a grid.

    Returns:
        The trees, on the device of the costs.

    Raises:
        ValueError: the costs are not one per edge.

    Example:
    ```python
    >>> import torch
    >>> from transformers_cvis.kernels import minimum_spanning_trees

    >>> trees = minimum_spanning_trees(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), 2, 2)
    >>> sum(trees.level_sizes)
    4

    ```
    """
    edges = grid_edges(height, width)
    if edge_costs.dim() != 2 or edge_costs.shape[1] != len(edges):
        raise ValueError(
            f"edge_costs has shape {tuple(edge_costs.shape)}, expected (batch, {len(edges)}): a grid of {height} x "
            f"{width} nodes has {len(edges)} edges."
        )
    batch_size, num_nodes = edge_costs.shape[0], height * width
    # Ranks replace costs: they differ, so the tree is unique, and none is zero, which scipy would read as "no edge".
    by_cost = torch.sort(edge_costs.detach(), dim=1, stable=True).indices.cpu().numpy()
    ranks = np.empty_like(by_cost)
    np.put_along_axis(ranks, by_cost, np.arange(1, len(edges) + 1)[None], axis=1)
    top_left = np.arange(batch_size) * num_nodes
    first, second = ((ends + top_left[:, None]).ravel() for ends in edges.T)
    grids = coo_array((ranks.ravel(), (first, second)), shape=(batch_size * num_nodes,) * 2)
    forest = minimum_spanning_tree(grids.tocsr()).tocoo()

    # The first walk, from the top left, numbers the edges; the second, from the middles, has the fewest levels.
    nodes, parent_from_top_left = _walk(forest, top_left)
    nodes, from_node = _walk(forest, _middles(forest, nodes, num_nodes))
    total, depth_starts = len(nodes), [0, batch_size]
    positions = np.full(total + 1, -1)
    positions[nodes] = np.arange(total)
    parents = from_node[nodes]
    parent_positions = positions[parents]
    # They never fall in a breadth-first order: a level ends before the first node whose parent is in that level.
    while depth_starts[-1] < total:
        depth_starts.append(int(np.searchsorted(parent_positions, depth_starts[-1])))
    edge_numbers = np.where(parent_from_top_left[nodes] == parents, nodes, parents)
    edge_numbers[:batch_size] = nodes[:batch_size] // num_nodes * num_nodes  # roots take the unused row of the top left
    parents[:batch_size] = -1
    walk = [torch.from_numpy(array).to(edge_costs.device) for array in (nodes, parents, edge_numbers)]
    return SpanningTrees(walk[0], walk[1], walk[2], level_sizes=np.diff(depth_starts).tolist())


def _walk(forest: coo_array, roots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Walk all trees breadth first, from one root in each.

    An extra node, number `total`, joins all trees to one: it is the parent of the roots, and of itself.

    Returns:
        The nodes in the order of the walk `(total,)`, and the parent of each node, by node `(total + 1,)`.
    """
    total = forest.shape[0]
    ends = np.concatenate((forest.row, roots)), np.concatenate((forest.col, np.full(len(roots), total)))
    tree = coo_array((np.ones(len(ends[0])), ends), shape=(total + 1, total + 1)).tocsr()
    nodes, from_node = breadth_first_order(tree, total, directed=False)
    from_node[total] = total
    return nodes[1:].astype(np.int64), from_node.astype(np.int64)


def _middles(forest: coo_array, nodes: np.ndarray, num_nodes: int) -> np.ndarray:
    """Return the middle of the longest path of every tree `(B,)`: its distance to the furthest node is least.

    `nodes` is the order of a breadth-first walk from any roots. Its last node in a tree is one end of the longest path,
    and the last node of a walk from there is the other end.
    """
    nodes, from_node = _walk(forest, _last_of_trees(nodes, num_nodes))
    total = len(nodes)
    steps = [_last_of_trees(nodes, num_nodes)]
    while (steps[-1] < total).any():
        steps.append(from_node[steps[-1]])
    path = np.stack(steps)  # (steps, B), padded with the node above the roots
    return path[np.count_nonzero(path < total, axis=0) // 2, np.arange(path.shape[1])]


def _last_of_trees(nodes: np.ndarray, num_nodes: int) -> np.ndarray:
    """Return the last node of every tree `(B,)` in the order of a walk over all of them."""
    by_tree = np.argsort(nodes // num_nodes, kind="stable")
    return nodes[by_tree[num_nodes - 1 :: num_nodes]]


@use_kernel_forward_from_hub("TreeScan")
class TreeScan(nn.Module):
    """Tree scan of GrootV (Xiao et al. 2024, arXiv:2406.02395, algorithm 1).

    Computes, for each channel, `out_i = sum over j of features_j times the product of the edge weights on the path from
    i to j`, over all nodes j of the tree of i, including i. The module has no weights. A Hub kernel of this signature
    replaces its forward after [`use_kernels`].

    Work and memory are linear in the number of nodes. All trees are walked together, one level of equal distance from
    the roots after the other, so the number of tensor operations follows the depth of the deepest tree. On a CPU with
    numba, the trees are walked one after the other instead, by code that is compiled at first use (one to two seconds).

    Example:
    ```python
    >>> import torch
    >>> from transformers_cvis.kernels import TreeScan, grid_edge_costs, minimum_spanning_trees

    >>> features = torch.randn(1, 3, 4, 8)
    >>> trees = minimum_spanning_trees(grid_edge_costs(features), 3, 4)
    >>> states = features.flatten(1, 2)
    >>> torch.equal(TreeScan()(states, torch.zeros_like(states), trees), states)  # weights of 0 cut all paths
    True

    ```
    """

    def forward(self, features: torch.Tensor, edge_weights: torch.Tensor, trees: SpanningTrees) -> torch.Tensor:
        """Aggregate `features` along the paths of `trees`.

        Args:
            features: features of the nodes `(B, N, C)`.
            edge_weights: weights `(B, N, C)` of the edge between each node and the next one on its path to the top left
                node. The entries of the top left nodes are not read, and their gradient is zero.
            trees: trees of the B grids, from [`minimum_spanning_trees`].

        Returns:
            Tensor `(B, N, C)` in the dtype of `features`, computed in float64 if features or weights are, otherwise in
            float32.

        Raises:
            ValueError: the shapes do not fit each other or the trees.
        """
        _check_shapes(features, edge_weights, trees)
        if torch.is_grad_enabled() and (features.requires_grad or edge_weights.requires_grad):
            return _TreeScan.apply(features, edge_weights, trees)
        return _scan(features, edge_weights, trees)


class _TreeScan(torch.autograd.Function):
    """Autograd function of the tree scan.

    A path has the same weight in both directions, so the gradient of the features is the scan of the gradient. Only the
    inputs and the result are kept; the backward computes the aggregates of subtrees again.
    """

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, edge_weights: torch.Tensor, trees: SpanningTrees) -> torch.Tensor:
        result = _scan(features, edge_weights, trees)
        ctx.save_for_backward(features, edge_weights, result)
        ctx.trees = trees
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        features, edge_weights, result = ctx.saved_tensors
        trees = ctx.trees
        if not ctx.needs_input_grad[1]:
            return _scan(grad_output, edge_weights, trees).to(features.dtype), None, None
        gradients = _scan_gradients(features, edge_weights, trees, result, grad_output)
        grad_features = gradients[0].to(features.dtype) if ctx.needs_input_grad[0] else None
        return grad_features, gradients[1].to(edge_weights.dtype), None


def _scan(features: torch.Tensor, edge_weights: torch.Tensor, trees: SpanningTrees) -> torch.Tensor:
    dtype = _compute_dtype(features, edge_weights)
    if (compiled := _compiled_for(features)) is not None:
        return compiled.scan(features, edge_weights, trees[:3], dtype).to(features.dtype)
    weights, states = _rows(edge_weights), _copied_rows(features, dtype)
    _scan_up(weights, trees, states)
    _scan_down(weights, trees, states)
    return states.view(features.shape).to(features.dtype)


def _scan_gradients(
    features: torch.Tensor,
    edge_weights: torch.Tensor,
    trees: SpanningTrees,
    result: torch.Tensor,
    grad_result: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = _compute_dtype(features, edge_weights)
    if (compiled := _compiled_for(features)) is not None:
        return compiled.scan_gradients(features, edge_weights, trees[:3], result, grad_result, dtype)
    weights, subtrees, gradients = _rows(edge_weights), _copied_rows(features, dtype), _copied_rows(grad_result, dtype)
    _scan_up(weights, trees, subtrees, gradients)
    grad_weights = _scan_down_with_weight_gradient(weights, trees, gradients, subtrees, _rows(result))
    return gradients.view(features.shape), grad_weights.view(features.shape)


def _compiled_for(features: torch.Tensor) -> ModuleType | None:
    return _compiled_scan() if features.device.type == "cpu" and not torch.compiler.is_compiling() else None


@lru_cache(maxsize=1)
def _compiled_scan() -> ModuleType | None:
    """Import the compiled scan at first use, or return None; importing numba takes half a second."""
    try:
        from . import tree_scan_numba
    except ImportError:  # not installed, or built for another numpy
        return None
    return tree_scan_numba


# The functions below take rows of nodes `(B*N, C)` and change them in place. They gather one level at a time, which is
# small enough to stay in a CPU's cache and to reuse memory.


def _scan_up(weights: torch.Tensor, trees: SpanningTrees, *states: torch.Tensor) -> None:
    """Walk from the leaves to the roots, and turn each of `states` in place into aggregates of subtrees."""
    for nodes, parents, edges in reversed(_levels(trees)):
        weight = _gather(weights, edges, states[0].dtype)
        for state in states:
            state.index_add_(0, parents, state.index_select(0, nodes).mul_(weight))


def _scan_down(weights: torch.Tensor, trees: SpanningTrees, states: torch.Tensor) -> None:
    """Walk from the roots to the leaves, and turn aggregates of subtrees in place into those of whole trees.

    From outside its subtree, a node receives the aggregate of its parent minus the weighted aggregate of its subtree.
    """
    for nodes, parents, edges in _levels(trees):
        weight, subtree = _gather(weights, edges, states.dtype), states.index_select(0, nodes)
        outside = states.index_select(0, parents).addcmul_(weight, subtree, value=-1)
        states.index_copy_(0, nodes, subtree.addcmul_(weight, outside))


def _scan_down_with_weight_gradient(
    weights: torch.Tensor, trees: SpanningTrees, gradients: torch.Tensor, subtrees: torch.Tensor, wholes: torch.Tensor
) -> torch.Tensor:
    """Run [`_scan_down`] on `gradients`, and return the gradient of the edge weights in the memory of `subtrees`.

    The gradient of an edge weight is, channel by channel, the features outside the subtree times the gradient of the
    subtree, plus the features of the subtree times the gradient outside.

    Args:
        weights: weights of the edges.
        trees: the trees.
        gradients: aggregates over subtrees of the gradient of the result; changed in place.
        subtrees: aggregates over subtrees of the features; overwritten.
        wholes: aggregates over whole trees of the features.
    """
    dtype = gradients.dtype
    for nodes, parents, edges in _levels(trees):
        weight = _gather(weights, edges, dtype)
        subtree, gradient = subtrees.index_select(0, nodes), gradients.index_select(0, nodes)
        outside = _gather(wholes, parents, dtype).addcmul_(weight, subtree, value=-1)
        grad_outside = gradients.index_select(0, parents).addcmul_(weight, gradient, value=-1)
        # An edge has the number of its node or of the parent. Neither row of `subtrees` is read again.
        subtrees.index_copy_(0, edges, outside.mul_(gradient).addcmul_(subtree, grad_outside))
        gradients.index_copy_(0, nodes, gradient.addcmul_(weight, grad_outside))
    return subtrees.index_fill_(0, trees.edges[: trees.level_sizes[0]], 0)


def _levels(trees: SpanningTrees) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return for every level below the roots the nodes, their parents and the edges between them."""
    walk = (trees.nodes, trees.parents, trees.edges)
    return list(zip(*(steps.split(trees.level_sizes) for steps in walk), strict=True))[1:]


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _copied_rows(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Copy a tensor into contiguous rows `(B*N, C)`, whatever its strides."""
    return _rows(torch.empty(tensor.shape, dtype=dtype, device=tensor.device).copy_(tensor))


def _gather(rows: torch.Tensor, places: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return rows.index_select(0, places).to(dtype)


def _compute_dtype(features: torch.Tensor, edge_weights: torch.Tensor) -> torch.dtype:
    return at_least_float32_dtype(features.dtype, edge_weights.dtype)


def _check_shapes(features: torch.Tensor, edge_weights: torch.Tensor, trees: SpanningTrees) -> None:
    if features.dim() != 3 or features.shape != edge_weights.shape:
        raise ValueError(
            f"features have shape {tuple(features.shape)} and edge_weights {tuple(edge_weights.shape)}; both must have "
            "the same shape (batch, nodes, channels)."
        )
    num_trees, num_nodes = features.shape[0], features.shape[0] * features.shape[1]
    if len(trees.nodes) != num_nodes or sum(trees.level_sizes) != num_nodes or trees.level_sizes[0] != num_trees:
        raise ValueError(
            f"{trees.level_sizes[0]} trees have {len(trees.nodes)} nodes, but the features have {features.shape[0]} x "
            f"{features.shape[1]}: build the trees from the grids of the same batch."
        )
