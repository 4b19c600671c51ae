# SPDX-License-Identifier: Apache-2.0
"""One layer of HVPL's video context encoder against the reference case `hvpl_context_layer`."""

import pytest
import torch

from tests.support.goldens import assert_matches, load_case
from transformers_cvis.kernels import minimum_spanning_trees
from transformers_cvis.modeling.hvpl import ContextEncoderLayer

NAMES = {
    "norm1.0": "state_space_layer_norm",
    "norm2.0": "final_layer_norm",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
    "TreeSSM.in_proj": "state_space.in_proj",
    "TreeSSM.conv2d": "state_space.conv2d",
    "TreeSSM.x_proj_weight": "state_space.x_proj.weight",
    "TreeSSM.dt_projs_weight": "state_space.dt_proj.weight",
    "TreeSSM.dt_projs_bias": "state_space.dt_proj.bias",
    "TreeSSM.A_logs": "state_space.A_log",
    "TreeSSM.Ds": "state_space.D",
    "TreeSSM.h_norm": "state_space.state_norm",
    "TreeSSM.out_norm": "state_space.output_norm",
    "TreeSSM.out_proj": "state_space.out_proj",
}


@pytest.fixture(scope="module")
def case():
    return load_case("hvpl_context_layer")


@pytest.fixture(scope="module")
def layer(case):
    config = case.config
    layer = ContextEncoderLayer(config["channels"], int(config["channels"] * config["mlp_ratio"])).double().eval()
    weights = {}
    for name, tensor in case.state_dict().items():
        stem = next(stem for stem in NAMES if name.startswith(stem))
        # the projections of the scan have a first axis of length one
        several_scans = stem.startswith(("TreeSSM.x_proj", "TreeSSM.dt_projs"))
        weights[NAMES[stem] + name[len(stem) :]] = tensor[0] if several_scans else tensor
    layer.load_state_dict(weights)
    return layer


@torch.no_grad()
@pytest.mark.parametrize("run", ["eval", "train_like"])
def test_layer(case, layer, run):
    hidden_states = case.inputs[f"{run}/x"]
    scanned = layer.state_space(layer.state_space_layer_norm(hidden_states))
    assert_matches(scanned, case.outputs[f"{run}/tree_ssm"], f"{run} scan branch", case.tolerance)
    assert_matches(layer(hidden_states), case.outputs[f"{run}/y"], f"{run} layer", case.tolerance)


@torch.no_grad()
@pytest.mark.parametrize("run", ["eval", "train_like"])
def test_trees(case, layer, run, monkeypatch):
    used = []

    def recorded(*args):
        used.append(minimum_spanning_trees(*args))
        return used[-1]

    monkeypatch.setattr("transformers_cvis.modeling.hvpl.context_encoder.minimum_spanning_trees", recorded)
    hidden_states = case.inputs[f"{run}/x"]
    layer(hidden_states)
    (trees,) = used
    num_nodes = hidden_states.shape[1] * hidden_states.shape[2]
    edges = [set() for _ in hidden_states]
    for node, parent in zip(trees.nodes.tolist(), trees.parents.tolist(), strict=True):
        if parent >= 0:
            grid = node // num_nodes
            edges[grid].add(frozenset((node - grid * num_nodes, parent - grid * num_nodes)))
    expected = case.outputs[f"{run}/tree_edges"].tolist()
    assert edges == [{frozenset(edge) for edge in tree} for tree in expected]
