# SPDX-License-Identifier: Apache-2.0
"""The tree scan on a CPU, compiled by numba where that is installed.

It takes one tree after the other, all of which then stays in the cache; level by level, as [`TreeScan`] does it without
numba, all trees pass through memory at every step. Letters in shape comments: B trees, N nodes each, C channels.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

# Nodes, parents and edges, `(B*N,)` each, as in `SpanningTrees`.
Walk = tuple[Tensor, Tensor, Tensor]


def scan(features: Tensor, edge_weights: Tensor, walk: Walk, dtype: torch.dtype) -> Tensor:
    """What [`TreeScan`] computes, in `dtype`, without gradients.

    Args:
        features, edge_weights: `(B, N, C)`.
        dtype: float32 or float64.
    """
    result = torch.empty(features.shape, dtype=dtype)
    _scan(*_walk_by_tree(walk, *features.shape[:2]), *_rows(dtype, features, edge_weights, result))
    return result


def scan_gradients(
    features: Tensor,
    edge_weights: Tensor,
    walk: Walk,
    result: Tensor,
    grad_result: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Gradients of features and edge weights from the result of [`scan`] and its gradient, all `(B, N, C)`."""
    inputs = (features, edge_weights, result, grad_result)
    gradients = [torch.empty(features.shape, dtype=dtype) for _ in range(2)]
    _scan_gradients(*_walk_by_tree(walk, *features.shape[:2]), *_rows(dtype, *inputs, *gradients))
    return tuple(gradients)


def _rows(dtype: torch.dtype, *tensors: Tensor) -> list[np.ndarray]:
    """`(B*N, C)` each: the memory of the tensor where it is contiguous and of the dtype, otherwise a copy."""
    return [tensor.detach().to(dtype).contiguous().flatten(0, 1).numpy() for tensor in tensors]


def _walk_by_tree(walk: Walk, num_trees: int, num_nodes: int) -> list[np.ndarray]:
    """Nodes, parents and edges, `(B, N)` each: tree after tree and every tree from its root on."""
    nodes, parents, edges = (steps.numpy() for steps in walk)
    by_tree = np.argsort(nodes // num_nodes, kind="stable")
    return [steps[by_tree].reshape(num_trees, num_nodes) for steps in (nodes, parents, edges)]


# Loops throughout: slices of arrays take numba several times as long to compile.


@njit(nogil=True)
def _scan(nodes, parents, edges, features, weights, states):
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
def _scan_gradients(nodes, parents, edges, features, weights, wholes, grad_wholes, gradients, grad_weights):
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
