# SPDX-License-Identifier: Apache-2.0
"""Aggregation along the paths of trees that span grids: which tree, and the scan up and down it.

Letters in shape comments: B grids of H rows and W columns, N = H*W nodes of a grid numbered row by row, E edges between
4-neighbours, C channels.
"""

from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from kernels import use_kernel_forward_from_hub
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..precision import at_least_float32, at_least_float32_dtype


class SpanningTrees(NamedTuple):
    """Trees that together hold every node of B grids, and the walk from their roots that visits all at once.

    Nodes are counted through all grids: `grid * N + row * W + column`. The walk starts in the middle of each tree, from
    where it takes the fewest steps; the sums along paths do not depend on that.
    """

    nodes: Tensor  # (B*N,) long, by rising distance from the root of their tree
    parents: Tensor  # (B*N,) long, the node from which the walk comes to each of `nodes`; -1 for a root
    edges: Tensor  # (B*N,) long, of the edge to the parent the end further from the top left; of a root the top left
    level_sizes: list[int]  # number of nodes at distance 0, 1, 2, ... from their roots; adds up to B*N


def grid_edge_costs(guide: Tensor) -> Tensor:
    """Costs `exp(-cosine similarity)` of neighbouring positions, so that a cheapest tree joins what looks alike.

    Args:
        guide: `(B, H, W, C)`; no gradient flows into the choice of a tree.

    Returns:
        `(B, E)` in float32 (float64 for such a guide): all vertical edges row by row, then all horizontal ones.
    """
    guide = at_least_float32(guide.detach())
    vertical = F.cosine_similarity(guide[:, :-1], guide[:, 1:], dim=-1, eps=1e-8)  # [B, H-1, W]
    horizontal = F.cosine_similarity(guide[:, :, :-1], guide[:, :, 1:], dim=-1, eps=1e-8)  # [B, H, W-1]
    return torch.cat((vertical.flatten(1), horizontal.flatten(1)), dim=1).neg_().exp_()


@lru_cache(maxsize=64)
def grid_edges(height: int, width: int) -> np.ndarray:
    """The two nodes `(E, 2)` of every edge between 4-neighbours, in the order of [`grid_edge_costs`]; read-only."""
    nodes = np.arange(height * width).reshape(height, width)
    vertical = np.stack((nodes[:-1].ravel(), nodes[1:].ravel()), axis=1)
    horizontal = np.stack((nodes[:, :-1].ravel(), nodes[:, 1:].ravel()), axis=1)
    edges = np.concatenate((vertical, horizontal))
    edges.setflags(write=False)
    return edges


def minimum_spanning_trees(edge_costs: Tensor, height: int, width: int) -> SpanningTrees:
    """The cheapest tree of every grid; of equal edges the earlier one is taken.

    That is Kruskal's algorithm with a stable sort. It runs on the CPU (scipy) for all grids in one call, and only the
    order of the costs is copied there.

    Args:
        edge_costs: `(B, E)`, any device, edges in the order of [`grid_edge_costs`].

    Returns:
        [`SpanningTrees`] on the device of the costs.

    Raises:
        ValueError: the costs are not one per edge.
    """
    edges = grid_edges(height, width)
    if edge_costs.dim() != 2 or edge_costs.shape[1] != len(edges):
        raise ValueError(
            f"edge_costs has shape {tuple(edge_costs.shape)}, expected (batch, {len(edges)}): a grid of {height} x "
            f"{width} nodes has {len(edges)} edges."
        )
    batch_size, num_nodes = edge_costs.shape[0], height * width
    # Ranks, not costs: no two are equal, so the tree is unique, and none is zero, which scipy takes for "no edge".
    by_cost = torch.sort(edge_costs.detach(), dim=1, stable=True).indices.cpu().numpy()
    ranks = np.empty_like(by_cost)
    np.put_along_axis(ranks, by_cost, np.arange(1, len(edges) + 1)[None], axis=1)
    top_left = np.arange(batch_size) * num_nodes
    first, second = ((ends + top_left[:, None]).ravel() for ends in edges.T)
    grids = coo_array((ranks.ravel(), (first, second)), shape=(batch_size * num_nodes,) * 2)
    forest = minimum_spanning_tree(grids.tocsr()).tocoo()

    nodes, above = _walk(forest, top_left)
    nodes, from_node = _walk(forest, _middles(forest, nodes, num_nodes))
    total, depth_starts = len(nodes), [0, batch_size]
    positions = np.full(total + 1, -1)
    positions[nodes] = np.arange(total)
    parents = from_node[nodes]
    places = positions[parents]
    # Breadth first, these never fall: a level ends where the first parent is a node of that level.
    while depth_starts[-1] < total:
        depth_starts.append(int(np.searchsorted(places, depth_starts[-1])))
    lower = np.where(above[nodes] == parents, nodes, parents)
    lower[:batch_size] = nodes[:batch_size] // num_nodes * num_nodes  # the one node with no edge above it
    parents[:batch_size] = -1
    walk = (torch.from_numpy(array).to(edge_costs.device) for array in (nodes, parents, lower))
    return SpanningTrees(*walk, level_sizes=np.diff(depth_starts).tolist())


def _walk(forest: coo_array, roots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All nodes `(total,)` breadth first from a root of every tree, and from which node each, by node, is reached.

    A root is reached from the node number `total`, and so is that one, `(total + 1,)`: it joins all trees to one.
    """
    total = forest.shape[0]
    ends = np.concatenate((forest.row, roots)), np.concatenate((forest.col, np.full(len(roots), total)))
    tree = coo_array((np.ones(len(ends[0])), ends), shape=(total + 1, total + 1)).tocsr()
    nodes, from_node = breadth_first_order(tree, total, directed=False)
    from_node[total] = total
    return nodes[1:].astype(np.int64), from_node.astype(np.int64)


def _middles(forest: coo_array, nodes: np.ndarray, num_nodes: int) -> np.ndarray:
    """The middle of the longest path of every tree `(B,)`, from where the furthest node is least far.

    One end of that path is the node that a walk reaches last, `nodes` from any root, the other the one that a walk from
    there reaches last.
    """
    nodes, from_node = _walk(forest, _last_of_trees(nodes, num_nodes))
    total = len(nodes)
    path = [_last_of_trees(nodes, num_nodes)]
    while (path[-1] < total).any():
        path.append(from_node[path[-1]])
    path = np.stack(path)  # [steps, B], filled up with the node above the roots
    return path[np.count_nonzero(path < total, axis=0) // 2, np.arange(path.shape[1])]


def _last_of_trees(nodes: np.ndarray, num_nodes: int) -> np.ndarray:
    by_tree = np.argsort(nodes // num_nodes, kind="stable")
    return nodes[by_tree[num_nodes - 1 :: num_nodes]]


@use_kernel_forward_from_hub("TreeScan")
class TreeScan(nn.Module):
    """`out_i = sum over j of features_j times the product of the edge weights on the path from i to j`, per channel.

    The tree scan of GrootV (Xiao et al. 2024, arXiv:2406.02395, algorithm 1), over all nodes j of the tree of i, with i
    itself. Stateless; a Hub kernel of this signature takes its place after [`use_kernels`].

    Work and memory are linear in the nodes. All trees are walked together, one level of equal distance from the roots
    after the other, so that the number of tensor operations follows the depth of the deepest tree. On a CPU with numba
    they are walked one after the other instead, by code that is compiled at first use, which takes a second or two.
    """

    def forward(self, features: Tensor, edge_weights: Tensor, trees: SpanningTrees) -> Tensor:
        """Aggregate `features` along the paths of `trees`.

        Args:
            features: `(B, N, C)`.
            edge_weights: `(B, N, C)`, of the edge between each node and the next on its path to the top left node;
                those of the top left nodes are not read, and their gradient is zero.
            trees: of the B grids, from [`minimum_spanning_trees`].

        Returns:
            `(B, N, C)` in the dtype of `features`; computed in float32 (float64 where features or weights have it).

        Raises:
            ValueError: when shapes do not fit each other or the trees.
        """
        _check_shapes(features, edge_weights, trees)
        if torch.is_grad_enabled() and (features.requires_grad or edge_weights.requires_grad):
            return _TreeScan.apply(features, edge_weights, trees)
        return _scan(features, edge_weights, trees)


class _TreeScan(torch.autograd.Function):
    """Paths read the same both ways, so the gradient of the features is the scan of the gradient.

    Nothing but inputs and result is kept; what is needed of the way up is computed again.
    """

    @staticmethod
    def forward(ctx, features, edge_weights, trees):
        result = _scan(features, edge_weights, trees)
        ctx.save_for_backward(features, edge_weights, result)
        ctx.trees = trees
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        features, edge_weights, result = ctx.saved_tensors
        trees = ctx.trees
        if not ctx.needs_input_grad[1]:
            return _scan(grad_output, edge_weights, trees).to(features.dtype), None, None
        gradients = _scan_gradients(features, edge_weights, trees, result, grad_output)
        grad_features = gradients[0].to(features.dtype) if ctx.needs_input_grad[0] else None
        return grad_features, gradients[1].to(edge_weights.dtype), None


def _scan(features: Tensor, edge_weights: Tensor, trees: SpanningTrees) -> Tensor:
    dtype = _compute_dtype(features, edge_weights)
    if (compiled := _compiled_for(features)) is not None:
        return compiled.scan(features, edge_weights, trees[:3], dtype).to(features.dtype)
    weights, states = _rows(edge_weights), _copied_rows(features, dtype)
    _scan_up(weights, trees, states)
    _scan_down(weights, trees, states)
    return states.view(features.shape).to(features.dtype)


def _scan_gradients(
    features: Tensor, edge_weights: Tensor, trees: SpanningTrees, result: Tensor, grad_result: Tensor
) -> tuple[Tensor, Tensor]:
    dtype = _compute_dtype(features, edge_weights)
    if (compiled := _compiled_for(features)) is not None:
        return compiled.scan_gradients(features, edge_weights, trees[:3], result, grad_result, dtype)
    weights, subtrees, gradients = _rows(edge_weights), _copied_rows(features, dtype), _copied_rows(grad_result, dtype)
    _scan_up(weights, trees, subtrees, gradients)
    grad_weights = _scan_down_with_weight_gradient(weights, trees, gradients, subtrees, _rows(result))
    return gradients.view(features.shape), grad_weights.view(features.shape)


def _compiled_for(features: Tensor) -> ModuleType | None:
    return _compiled_scan() if features.device.type == "cpu" and not torch.compiler.is_compiling() else None


@lru_cache(maxsize=1)
def _compiled_scan() -> ModuleType | None:
    """Looked up at first use, since importing numba takes half a second that most runs need not spend."""
    try:
        from . import tree_scan_numba
    except ImportError:  # not installed, or of another numpy than this one
        return None
    return tree_scan_numba


# In what follows rows are nodes, `[B*N, C]`. They stay where they are and are changed in place; only those of one level
# at a time are brought together, which is little enough to stay in a CPU's cache and to need no fresh memory.


def _scan_up(weights: Tensor, trees: SpanningTrees, *states: Tensor) -> None:
    """Leaves to roots: each of `states` becomes, in place, the aggregates of subtrees."""
    for nodes, parents, edges in reversed(_levels(trees)):
        weight = _gather(weights, edges, states[0].dtype)
        for state in states:
            state.index_add_(0, parents, state.index_select(0, nodes).mul_(weight))


def _scan_down(weights: Tensor, trees: SpanningTrees, states: Tensor) -> None:
    """Roots to leaves, in place: aggregates of subtrees become those of whole trees.

    What reaches a node from outside its subtree is its parent's aggregate less what it sent there itself.
    """
    for nodes, parents, edges in _levels(trees):
        weight, subtree = _gather(weights, edges, states.dtype), states.index_select(0, nodes)
        outside = states.index_select(0, parents).addcmul_(weight, subtree, value=-1)
        states.index_copy_(0, nodes, subtree.addcmul_(weight, outside))


def _scan_down_with_weight_gradient(
    weights: Tensor, trees: SpanningTrees, gradients: Tensor, subtrees: Tensor, wholes: Tensor
) -> Tensor:
    """[`_scan_down`] of `gradients`, and the gradient of the edge weights, which takes the memory of `subtrees`.

    An edge carries what lies below it to the gradients outside, and what lies outside to the gradients below.

    Args:
        subtrees: aggregates of subtrees of the features.
        wholes: aggregates of whole trees of the features.
    """
    dtype = gradients.dtype
    for nodes, parents, edges in _levels(trees):
        weight = _gather(weights, edges, dtype)
        subtree, gradient = subtrees.index_select(0, nodes), gradients.index_select(0, nodes)
        outside = _gather(wholes, parents, dtype).addcmul_(weight, subtree, value=-1)
        grad_outside = gradients.index_select(0, parents).addcmul_(weight, gradient, value=-1)
        # An edge has the number of its node or of the parent; the subtrees of neither are needed any more.
        subtrees.index_copy_(0, edges, outside.mul_(gradient).addcmul_(subtree, grad_outside))
        gradients.index_copy_(0, nodes, gradient.addcmul_(weight, grad_outside))
    return subtrees.index_fill_(0, trees.edges[: trees.level_sizes[0]], 0)


def _levels(trees: SpanningTrees) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Nodes, their parents and the edges between them, of every level below the roots."""
    walk = (trees.nodes, trees.parents, trees.edges)
    return list(zip(*(steps.split(trees.level_sizes) for steps in walk), strict=True))[1:]


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _copied_rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous, whatever the strides of `tensor`."""
    return _rows(torch.empty(tensor.shape, dtype=dtype, device=tensor.device).copy_(tensor))


def _gather(rows: Tensor, places: Tensor, dtype: torch.dtype) -> Tensor:
    return rows.index_select(0, places).to(dtype)


def _compute_dtype(features: Tensor, edge_weights: Tensor) -> torch.dtype:
    return at_least_float32_dtype(features.dtype, edge_weights.dtype)


def _check_shapes(features: Tensor, edge_weights: Tensor, trees: SpanningTrees) -> None:
    if features.dim() != 3 or features.shape != edge_weights.shape:
        raise ValueError(
            f"features have shape {tuple(features.shape)} and edge_weights {tuple(edge_weights.shape)}; both must be "
            "(batch, nodes, channels)."
        )
    num_trees, num_nodes = features.shape[0], features.shape[0] * features.shape[1]
    if len(trees.nodes) != num_nodes or sum(trees.level_sizes) != num_nodes or trees.level_sizes[0] != num_trees:
        raise ValueError(
            f"{trees.level_sizes[0]} trees have {len(trees.nodes)} nodes, the features {features.shape[0]} x "
            f"{features.shape[1]}: build the trees from grids of the same batch."
        )
