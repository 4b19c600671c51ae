# SPDX-License-Identifier: Apache-2.0
"""The tree scan against a Python loop over nodes: 30 trees of 130 nodes (13 x 10 grids) and 512 channels, float32.

With numba, on a CPU, the scan is compiled and uses one thread; otherwise PyTorch runs it level by level.

Rows:

- `forward`: without gradients.
- `forward_backward`: gradients of features and edge weights; the peer uses autograd through the loop.
- `spanning_trees`: from edge costs, against Kruskal's algorithm and a breadth-first walk in Python.
"""

from collections.abc import Iterator

import torch
from _harness import compare, main

from transformers_cvis.kernels import SpanningTrees, TreeScan, minimum_spanning_trees
from transformers_cvis.kernels.tree_scan import grid_edges

NUM_TREES, HEIGHT, WIDTH, CHANNELS = 30, 13, 10, 512


def rows(quick: bool) -> Iterator[dict]:
    torch.manual_seed(0)
    edges = grid_edges(HEIGHT, WIDTH)
    costs = torch.rand(NUM_TREES, len(edges))
    trees = minimum_spanning_trees(costs, HEIGHT, WIDTH)
    shape = (NUM_TREES, HEIGHT * WIDTH, CHANNELS)
    features, edge_weights, grad_output = torch.randn(shape), torch.rand(shape), torch.randn(shape)
    scan = TreeScan()
    note = f"{NUM_TREES} trees of {HEIGHT * WIDTH} nodes, {CHANNELS} channels, depth {len(trees.level_sizes) - 1}"
    repeats = 3 if quick else 7

    with torch.no_grad():
        expected = node_loop(features, edge_weights, trees)
        torch.testing.assert_close(scan(features, edge_weights, trees), expected, rtol=1e-4, atol=1e-4)
        yield compare(
            "forward",
            ours=lambda: scan(features, edge_weights, trees),
            peer=lambda: node_loop(features, edge_weights, trees),
            repeats=repeats,
            note=note,
        )

    features.requires_grad_()
    edge_weights.requires_grad_()
    yield compare(
        "forward_backward",
        ours=lambda: torch.autograd.grad(scan(features, edge_weights, trees), (features, edge_weights), grad_output),
        peer=lambda: torch.autograd.grad(
            node_loop(features, edge_weights, trees), (features, edge_weights), grad_output
        ),
        repeats=repeats,
        note=note,
    )
    yield compare(
        "spanning_trees",
        ours=lambda: minimum_spanning_trees(costs, HEIGHT, WIDTH),
        peer=lambda: [kruskal_parents(tree_costs, edges.tolist()) for tree_costs in costs.tolist()],
        repeats=repeats,
        note=f"{NUM_TREES} grids of {HEIGHT} x {WIDTH}",
    )


def node_loop(features: torch.Tensor, edge_weights: torch.Tensor, trees: SpanningTrees) -> torch.Tensor:
    """Run the published recursion node by node, differentiable by autograd."""
    values, weights = features.flatten(0, 1).unbind(0), edge_weights.flatten(0, 1).unbind(0)
    nodes, parents, edges = trees.nodes.tolist(), trees.parents.tolist(), trees.edges.tolist()
    steps = zip(nodes, parents, edges, strict=True)
    walk = [(node, parent, weights[edge]) for node, parent, edge in steps if parent >= 0]
    subtree = list(values)
    for node, parent, weight in reversed(walk):
        subtree[parent] = subtree[parent] + weight * subtree[node]
    whole = list(subtree)
    for node, parent, weight in walk:
        whole[node] = (1 - weight**2) * subtree[node] + weight * whole[parent]
    return torch.stack(whole).view_as(features)


def kruskal_parents(costs: list[float], edges: list[list[int]]) -> list[int]:
    """Return the parent of each node in the minimum spanning tree of a grid, -1 for node 0."""
    leader = list(range(HEIGHT * WIDTH))

    def find(node: int) -> int:
        while leader[node] != node:
            leader[node] = leader[leader[node]]
            node = leader[node]
        return node

    neighbours: list[list[int]] = [[] for _ in leader]
    for edge in sorted(range(len(edges)), key=costs.__getitem__):
        first, second = edges[edge]
        first_leader, second_leader = find(first), find(second)
        if first_leader != second_leader:
            leader[first_leader] = second_leader
            neighbours[first].append(second)
            neighbours[second].append(first)
    parents, queue = [-1] * len(leader), [0]
    for node in queue:
        for neighbour in neighbours[node]:
            if neighbour != parents[node]:
                parents[neighbour] = node
                queue.append(neighbour)
    return parents


if __name__ == "__main__":
    main("Tree scan against a Python loop over nodes", rows)
