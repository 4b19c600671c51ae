# SPDX-License-Identifier: Apache-2.0
"""Spanning trees of grids and the aggregation along their paths, against naive definitions."""

import sys

import pytest
import torch

from tests.support.helpers import parent_table
from transformers_cvis.kernels import (
    SpanningTrees,
    TreeScan,
    disable_kernels,
    grid_edge_costs,
    kernel_report,
    minimum_spanning_trees,
    use_kernels,
)
from transformers_cvis.kernels import tree_scan as tree_scan_module
from transformers_cvis.kernels.tree_scan import grid_edges


@pytest.fixture(params=["level_by_level", "numba"])
def scan(request, monkeypatch) -> TreeScan:
    """Return the layer on both paths: as on a GPU or without numba, and compiled for a CPU."""
    if request.param == "level_by_level":
        monkeypatch.setattr(tree_scan_module, "_compiled_scan", lambda: None)
    else:
        pytest.importorskip("numba")
        assert tree_scan_module._compiled_scan() is not None
    return TreeScan()


def tree_edges(parents: torch.Tensor) -> set[frozenset[int]]:
    return {frozenset((node, parent)) for node, parent in enumerate(parents.tolist()) if parent >= 0}


def kruskal(costs: list[float], edges: list[list[int]], num_nodes: int) -> set[frozenset[int]]:
    component = list(range(num_nodes))
    kept = set()
    for edge in sorted(range(len(edges)), key=costs.__getitem__):  # stable: of equal edges the earlier one
        first, second = (component[node] for node in edges[edge])
        if first != second:
            kept.add(frozenset(edges[edge]))
            component = [first if other == second else other for other in component]
    return kept


def random_trees(batch_size: int, height: int, width: int, seed: int = 0) -> SpanningTrees:
    generator = torch.Generator().manual_seed(seed)
    num_edges = len(grid_edges(height, width))
    return minimum_spanning_trees(torch.rand(batch_size, num_edges, generator=generator), height, width)


def aggregate_by_paths(features: torch.Tensor, edge_weights: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
    """Compute the closed form for one grid, `(N, C)`: each pair of nodes with the product of its edge weights."""

    def ancestors(node: int) -> list[int]:
        line = [node]
        while parents[line[-1]] >= 0:
            line.append(int(parents[line[-1]]))
        return line

    rows = []
    for target in range(len(features)):
        row = torch.zeros_like(features[0])
        for source in range(len(features)):
            # the edge of a node to its parent is on the path when only one of the two ends lies below it
            path = set(ancestors(target)) ^ set(ancestors(source))
            product = torch.ones_like(features[0])
            for node in path:
                product = product * edge_weights[node]
            row = row + product * features[source]
        rows.append(row)
    return torch.stack(rows)


def random_inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(shape, dtype=dtype), torch.rand(shape, dtype=dtype)


def test_edges_are_all_vertical_ones_then_all_horizontal_ones():
    assert grid_edges(2, 3).tolist() == [[0, 3], [1, 4], [2, 5], [0, 1], [1, 2], [3, 4], [4, 5]]


def test_edge_costs_come_in_the_order_of_the_edges():
    torch.manual_seed(0)
    guide = torch.randn(2, 3, 4, 5)
    nodes = guide.flatten(1, 2)
    first, second = grid_edges(3, 4).T.tolist()
    expected = torch.exp(-torch.cosine_similarity(nodes[:, first], nodes[:, second], dim=-1))
    torch.testing.assert_close(grid_edge_costs(guide), expected)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 6), (7, 1), (2, 2), (5, 6)])
def test_trees_are_those_of_kruskal_with_ties_broken_by_edge_order(height, width):
    edges = grid_edges(height, width)
    torch.manual_seed(0)
    costs = torch.randint(4, (3, len(edges))).float()  # many ties
    parents = parent_table(minimum_spanning_trees(costs, height, width), 3)
    for row, tree_costs in zip(parents, costs, strict=True):
        assert row[0] == -1
        assert tree_edges(row) == kruskal(tree_costs.tolist(), edges.tolist(), height * width)


def test_nodes_come_level_by_level_after_their_parents():
    trees = random_trees(4, 5, 6)
    everything = list(range(4 * 5 * 6))
    assert sorted(trees.nodes.tolist()) == sorted(trees.edges.tolist()) == everything
    assert trees.level_sizes[0] == 4
    assert sum(trees.level_sizes) == 4 * 5 * 6
    assert trees.parents[:4].tolist() == [-1] * 4
    assert trees.edges[:4].tolist() == [0, 30, 60, 90]  # the top left node has no parent edge
    levels, parents = (steps.split(trees.level_sizes) for steps in (trees.nodes, trees.parents))
    for level, parents_of_next in zip(levels[:-1], parents[1:], strict=True):
        assert set(parents_of_next.tolist()) <= set(level.tolist())


def test_walks_start_in_the_middle_of_the_longest_path():
    assert random_trees(1, 9, 1).nodes[0] == 4
    for seed in range(20):
        trees = random_trees(1, 5, 6, seed)
        neighbours = [[] for _ in range(30)]
        for edge in tree_edges(parent_table(trees, 1)[0]):
            first, second = edge
            neighbours[first].append(second)
            neighbours[second].append(first)

        def depth(node, reached_from, neighbours=neighbours):
            return max((1 + depth(other, node) for other in neighbours[node] if other != reached_from), default=0)

        assert len(trees.level_sizes) - 1 == min(depth(node, None) for node in range(30))


def test_negative_and_zero_costs_are_ordinary_costs():
    costs = torch.tensor([[-1.0, 0.0, 0.0, -2.0]])
    parents = parent_table(minimum_spanning_trees(costs, 2, 2), 1)
    assert tree_edges(parents[0]) == kruskal(costs[0].tolist(), grid_edges(2, 2).tolist(), 4)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (6, 1), (4, 4)])
def test_scan_is_the_sum_over_all_paths(scan, height, width):
    trees = random_trees(3, height, width)
    features, edge_weights = random_inputs((3, height * width, 2))
    result = scan(features, edge_weights, trees)
    parents = parent_table(trees, 3)
    expected = torch.stack([aggregate_by_paths(*tree) for tree in zip(features, edge_weights, parents, strict=True)])
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def test_gradients(scan):
    trees = random_trees(2, 3, 4)
    features, edge_weights = (tensor.requires_grad_() for tensor in random_inputs((2, 12, 3)))
    assert torch.autograd.gradcheck(lambda *inputs: scan(*inputs, trees), (features, edge_weights))
    assert torch.autograd.gradcheck(lambda values: scan(values, edge_weights.detach(), trees), (features,))
    assert torch.autograd.gradcheck(lambda weights: scan(features.detach(), weights, trees), (edge_weights,))
    edge_weights.grad = None
    scan(features, edge_weights, trees).sum().backward()
    assert (edge_weights.grad[:, 0] == 0).all()


def test_inputs_are_left_alone_and_need_not_be_contiguous(scan):
    trees = random_trees(2, 3, 4)
    features, edge_weights = random_inputs((2, 5, 12))
    features, edge_weights = features.transpose(1, 2), edge_weights.transpose(1, 2)
    before = features.clone(), edge_weights.clone()
    result = scan(features, edge_weights, trees)
    assert torch.equal(result, scan(features.contiguous(), edge_weights.contiguous(), trees))
    assert torch.equal(features, before[0])
    assert torch.equal(edge_weights, before[1])
    gradients = []
    for inputs in ((features, edge_weights), (features.contiguous(), edge_weights.contiguous())):
        inputs = [tensor.clone().requires_grad_() for tensor in inputs]  # clones keep the strides
        gradients.append(torch.autograd.grad(scan(*inputs, trees).square().sum(), inputs))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])


def test_channels_are_independent(scan):
    trees = random_trees(3, 40, 50)
    features, edge_weights = random_inputs((3, 2000, 100), torch.float32)

    def scanned(features, edge_weights):
        inputs = [tensor.clone().requires_grad_() for tensor in (features, edge_weights)]
        result = scan(*inputs, trees)
        return result, *torch.autograd.grad(result.square().sum(), inputs)

    whole = scanned(features, edge_weights)
    parts = [scanned(*part) for part in zip(features.split(30, dim=2), edge_weights.split(30, dim=2), strict=True)]
    for together, *separate in zip(whole, *parts, strict=True):
        assert torch.equal(together, torch.cat(separate, dim=2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(scan, dtype):
    trees = random_trees(2, 5, 6)
    features, edge_weights = (tensor.to(dtype).requires_grad_() for tensor in random_inputs((2, 30, 4)))
    result = scan(features, edge_weights, trees)
    expected = scan(features.float(), edge_weights.float(), trees)
    assert torch.equal(result, expected.to(dtype))
    assert result.dtype == dtype
    result.sum().backward()
    assert features.grad.dtype == edge_weights.grad.dtype == dtype


def test_long_chains_neither_overflow_nor_vanish(scan):
    trees = random_trees(1, 2000, 1)
    features = torch.ones(1, 2000, 1)
    assert torch.equal(scan(features, torch.zeros_like(features), trees), features)
    assert torch.equal(scan(features, torch.ones_like(features), trees), features * 2000)


def test_numba_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)  # importing it fails
    monkeypatch.delitem(sys.modules, "transformers_cvis.kernels.tree_scan_numba", raising=False)
    monkeypatch.delattr("transformers_cvis.kernels.tree_scan_numba", raising=False)
    assert tree_scan_module._compiled_scan.__wrapped__() is None


def test_a_kernel_of_the_same_signature_takes_the_place_of_the_scan():
    class DoubledScan(torch.nn.Module):
        can_torch_compile = False
        has_backward = True

        def forward(self, features, edge_weights, trees):
            return 2 * features

    class Repository:
        def load(self):
            return DoubledScan

    model = torch.nn.Sequential(TreeScan())
    trees = random_trees(1, 2, 2)
    features, edge_weights = random_inputs((1, 4, 1))
    use_kernels(model, strict=True, mapping={"TreeScan": {"cpu": Repository()}})
    assert torch.equal(model[0](features, edge_weights, trees), 2 * features)
    assert kernel_report(model)["0"].startswith("Hub kernel")
    disable_kernels(model)
    assert kernel_report(model) == {"0": "PyTorch"}
    assert not torch.equal(model[0](features, edge_weights, trees), 2 * features)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu():
    torch.manual_seed(0)
    guide = torch.randn(3, 6, 7, 4)
    features, edge_weights = random_inputs((3, 42, 4))
    results = []
    for device in ("cpu", "cuda"):
        inputs = [tensor.to(device, copy=True).requires_grad_() for tensor in (features, edge_weights)]
        trees = minimum_spanning_trees(grid_edge_costs(guide.to(device)), 6, 7)
        result = TreeScan()(*inputs, trees)
        results.append([result, *torch.autograd.grad(result.square().sum(), inputs)])
    for on_cpu, on_cuda in zip(*results, strict=True):
        torch.testing.assert_close(on_cuda.cpu(), on_cpu)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"edge_costs has shape \(1, 5\), expected \(batch, 4\)"):
        minimum_spanning_trees(torch.rand(1, 5), 2, 2)
    trees = random_trees(2, 2, 2)
    with pytest.raises(ValueError, match=r"\(2, 4, 3\) and edge_weights \(2, 4, 1\)"):
        TreeScan()(torch.rand(2, 4, 3), torch.rand(2, 4, 1), trees)
    with pytest.raises(ValueError, match="2 trees have 8 nodes, but the features have 3 x 4"):
        TreeScan()(torch.rand(3, 4, 1), torch.rand(3, 4, 1), trees)
    with pytest.raises(ValueError, match="2 trees have 8 nodes, but the features have 1 x 8"):
        TreeScan()(torch.rand(1, 8, 1), torch.rand(1, 8, 1), trees)
