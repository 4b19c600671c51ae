# SPDX-License-Identifier: Apache-2.0
"""Tree scan on a CPU, compiled by numba if that is installed.

It walks one tree after the other, so that a whole tree stays in the cache. Without numba, [`TreeScan`] walks level by
level, and all trees pass through memory at every step. Letters in shapes: B trees of N nodes each, C channels.
"""

import numpy as np
import torch
from numba import njit

# Nodes, parents and edges `(B*N,)` of `SpanningTrees`.
Walk = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def scan(features: torch.Tensor, edge_weights: torch.Tensor, walk: Walk, dtype: torch.dtype) -> torch.Tensor:
    """Compute the tree scan of [`TreeScan`], without gradients.

    Args:
        features: features of the nodes `(B, N, C)`.
        edge_weights: weights of the edges `(B, N, C)`.
        walk: nodes, parents and edges `(B*N,)` of `SpanningTrees`.
        dtype: float32 or float64, in which to compute.

    Returns:
        Tensor `(B, N, C)` in `dtype`.
    """
    result = torch.empty(features.shape, dtype=dtype)
    _scan(*_walk_by_tree(walk, *features.shape[:2]), *_rows(dtype, features, edge_weights, result))
    return result


def scan_gradients(
    features: torch.Tensor,
    edge_weights: torch.Tensor,
    walk: Walk,
    result: torch.Tensor,
    grad_result: torch.Tensor,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the gradients of the features and of the edge weights.

    Args:
        features: features of the nodes `(B, N, C)`.
        edge_weights: weights of the edges `(B, N, C)`.
        walk: nodes, parents and edges `(B*N,)` of `SpanningTrees`.
        result: result of [`scan`] `(B, N, C)`.
        grad_result: gradient of the result `(B, N, C)`.
        dtype: float32 or float64, in which to compute.

    Returns:
        Both gradients `(B, N, C)` in `dtype`.
    """
    inputs = (features, edge_weights, result, grad_result)
    gradients = torch.empty(features.shape, dtype=dtype), torch.empty(features.shape, dtype=dtype)
    _scan_gradients(*_walk_by_tree(walk, *features.shape[:2]), *_rows(dtype, *inputs, *gradients))
    return gradients


def _rows(dtype: torch.dtype, *tensors: torch.Tensor) -> list[np.ndarray]:
    """Return tensors as arrays `(B*N, C)`, without a copy of those that are contiguous and have the dtype."""
    return [tensor.detach().to(dtype).contiguous().flatten(0, 1).numpy() for tensor in tensors]


def _walk_by_tree(walk: Walk, num_trees: int, num_nodes: int) -> list[np.ndarray]:
    """Return nodes, parents and edges as arrays `(B, N)`: one tree per row, each from its root on."""
    nodes, parents, edges = (steps.numpy() for steps in walk)
    by_tree = np.argsort(nodes // num_nodes, kind="stable")
    return [steps[by_tree].reshape(num_trees, num_nodes) for steps in (nodes, parents, edges)]


# The functions below use loops: numba takes several times as long to compile slices of arrays.


@njit(nogil=True)
def _scan(
    nodes: np.ndarray,
    parents: np.ndarray,
    edges: np.ndarray,
    features: np.ndarray,
    weights: np.ndarray,
    states: np.ndarray,
) -> None:
    """Write the scan of `features` into `states`, both `(B*N, C)`."""
    num_trees, num_nodes = nodes.shape
    channels = range(features.shape[1])
    for tree in range(num_trees):
        for node in range(tree * num_nodes, (tree + 1) * num_nodes):
            for channel in channels:
                states[node, channel] = features[node, channel]
        for step in range(num_nodes - 1, 0, -1):
            node, parent, edge = nodes[tree, step], parents[tree, step], edges[tree, step]
            for channel in channels:
                states[parent, channel] += weights[edge, channel] * states[node, channel]
        for step in range(1, num_nodes):
            node, parent, edge = nodes[tree, step], parents[tree, step], edges[tree, step]
            for channel in channels:
                weight, subtree = weights[edge, channel], states[node, channel]
                outside = states[parent, channel] - weight * subtree
                states[node, channel] = subtree + weight * outside


@njit(nogil=True)
def _scan_gradients(
    nodes: np.ndarray,
    parents: np.ndarray,
    edges: np.ndarray,
    features: np.ndarray,
    weights: np.ndarray,
    wholes: np.ndarray,
    grad_wholes: np.ndarray,
    gradients: np.ndarray,
    grad_weights: np.ndarray,
) -> None:
    """Write the gradients of features and weights `(B*N, C)` into `gradients` and `grad_weights`."""
    num_trees, num_nodes = nodes.shape
    channels = range(features.shape[1])
    subtrees = np.empty((num_nodes, features.shape[1]), features.dtype)
    for tree in range(num_trees):
        top_left = tree * num_nodes
        for node in range(num_nodes):
            for channel in channels:
                subtrees[node, channel] = features[top_left + node, channel]
                gradients[top_left + node, channel] = grad_wholes[top_left + node, channel]
        for step in range(num_nodes - 1, 0, -1):
            node, parent, edge = nodes[tree, step], parents[tree, step], edges[tree, step]
            for channel in channels:
                weight = weights[edge, channel]
                subtrees[parent - top_left, channel] += weight * subtrees[node - top_left, channel]
                gradients[parent, channel] += weight * gradients[node, channel]
        for channel in channels:
            grad_weights[top_left, channel] = 0
        for step in range(1, num_nodes):
            node, parent, edge = nodes[tree, step], parents[tree, step], edges[tree, step]
            for channel in channels:
                weight = weights[edge, channel]
                subtree, gradient = subtrees[node - top_left, channel], gradients[node, channel]
                outside = wholes[parent, channel] - weight * subtree
                grad_outside = gradients[parent, channel] - weight * gradient
                grad_weights[edge, channel] = outside * gradient + subtree * grad_outside
                gradients[node, channel] = gradient + weight * grad_outside
