# SPDX-License-Identifier: Apache-2.0
"""Tree choice, aggregation and its gradients against the reference case `tree_scan`."""

import pytest
import torch

from tests.support.goldens import assert_matches, load_case
from tests.support.helpers import parent_table
from transformers_cvis.kernels import TreeScan, grid_edge_costs, minimum_spanning_trees
from transformers_cvis.kernels.tree_scan import grid_edges


@pytest.fixture(scope="module")
def case():
    return load_case("tree_scan")


def test_trees(case):
    for height, width in case.config["grids"]:
        grid = f"g{height}x{width}"
        guide = case.inputs[f"{grid}/guide"].permute(0, 2, 3, 1)
        batch_size = guide.shape[0]
        expected_edges = case.outputs[f"{grid}/grid_edges"].long()
        assert torch.equal(torch.tensor(grid_edges(height, width)).expand(batch_size, -1, -1), expected_edges)
        costs = grid_edge_costs(guide)
        assert_matches(costs, case.outputs[f"{grid}/grid_edge_cost"], f"{grid} costs", case.tolerance)
        trees = minimum_spanning_trees(costs, height, width)
        assert torch.equal(parent_table(trees, batch_size), case.outputs[f"{grid}/parent"].long()), grid


def test_aggregation_and_gradients(case):
    for height, width in case.config["grids"]:
        grid = f"g{height}x{width}"
        trees = minimum_spanning_trees(case.outputs[f"{grid}/grid_edge_cost"], height, width)
        inputs = [case.inputs[f"{grid}/{name}"].requires_grad_() for name in ("features", "edge_weight")]
        result = TreeScan()(*(tensor.transpose(1, 2) for tensor in inputs), trees).transpose(1, 2)
        gradients = torch.autograd.grad(result, inputs, case.inputs[f"{grid}/grad_out"])
        for name, value in zip(("aggregated", "grad_features", "grad_edge_weight"), (result, *gradients), strict=True):
            assert_matches(value, case.outputs[f"{grid}/{name}"], f"{grid} {name}", case.tolerance)
