# SPDX-License-Identifier: Apache-2.0
"""Batch invariance: bit-identical for any number of elements and of threads, otherwise the usual functions."""

import pytest
import torch
from torch import nn

from transformers_cvis.kernels import (
    BatchInvariance,
    Linear,
    TreeScan,
    batch_invariant_linear,
    grid_edge_costs,
    minimum_spanning_trees,
)

MOST_ELEMENTS = 9


def attention(query, key, value, num_heads, allowed=None):
    heads = (states.unflatten(-1, (num_heads, -1)).transpose(1, 2) for states in (query, key, value))
    mask = None if allowed is None else allowed[:, None]
    return nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2)


def functions(height: int, width: int, num_heads: int, num_channels: int, dtype: torch.dtype) -> dict:
    """Functions applied to the first elements of a batch."""
    torch.manual_seed(0)
    states, others = torch.randn(2, MOST_ELEMENTS, height, width, num_channels).to(dtype)
    decays = torch.rand_like(states)
    layers = [layer.to(dtype) for layer in (Linear(num_channels, 50), nn.Linear(num_channels, 2 * num_channels))]
    weights, biases = torch.randn(MOST_ELEMENTS, 33, num_channels).to(dtype), torch.randn(MOST_ELEMENTS, 33).to(dtype)
    pixels, allowed = torch.randn(70, num_channels).to(dtype), torch.rand(MOST_ELEMENTS, width, 70) < 0.5
    convolution = nn.Conv2d(num_channels, num_channels, 3, padding=1, groups=num_channels).to(dtype)
    norm = nn.LayerNorm(num_channels).to(dtype)

    def scan(count):
        trees = minimum_spanning_trees(grid_edge_costs(states[:count]), height, width)
        return TreeScan()(states[:count].flatten(1, 2), decays[:count].flatten(1, 2), trees)

    return {
        "oneDNN linear": lambda count: layers[0](states[:count]),
        "linear": lambda count: layers[1](states[:count]),
        "linear, own weights": lambda count: batch_invariant_linear(states[:count], weights[:count], biases[:count]),
        "matmul": lambda count: states[:count, 0] @ pixels.T,
        "self-attention": lambda count: attention(
            states[:count].flatten(1, 2), others[:count].flatten(1, 2), states[:count].flatten(1, 2), num_heads
        ),
        "masked attention to shared tokens": lambda count: attention(
            states[:count, -1], pixels.expand(count, -1, -1), pixels.expand(count, -1, -1), num_heads, allowed[:count]
        ),
        "attention, a mask for all queries": lambda count: attention(
            states[:count, 0], others[:count, 0], others[:count, 0], num_heads, allowed[:count, :1, :width]
        ),
        "silu": lambda count: nn.functional.silu(states[:count]),
        "gelu": lambda count: nn.functional.gelu(states[:count]),
        "softplus": lambda count: nn.functional.softplus(states[:count]),
        # unchanged
        "depthwise convolution": lambda count: convolution(states[:count].permute(0, 3, 1, 2)),
        "norm": lambda count: norm(states[:count]),
        "arithmetic": lambda count: states[:count] * others[:count] + others[:count].exp(),
        "tree scan": scan,
    }


@pytest.mark.usefixtures("cpu_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 16), (1, 3, 1, 24), (5, 7, 4, 32), (20, 10, 8, 256)], ids=str)
@torch.no_grad()
def test_elements_do_not_depend_on_their_number(sizes, dtype):
    for name, function in functions(*sizes, dtype).items():
        with BatchInvariance():
            most = function(MOST_ELEMENTS)
            for count in (1, 2, 3, 4, 7):
                assert torch.equal(function(count), most[:count]), (name, count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@torch.no_grad()
def test_results_agree_with_the_usual_functions(dtype):
    expected = {name: function(MOST_ELEMENTS) for name, function in functions(5, 7, 4, 32, dtype).items()}
    with BatchInvariance():
        for name, function in functions(5, 7, 4, 32, dtype).items():
            torch.testing.assert_close(function(MOST_ELEMENTS), expected[name], msg=lambda text, n=name: f"{n}: {text}")


def test_gradients():
    states, weight = torch.randn(2, 3, 4, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    states.requires_grad_(), weight.requires_grad_()
    query = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    with BatchInvariance():
        assert torch.autograd.gradcheck(nn.functional.linear, (states, weight))
        assert torch.autograd.gradcheck(lambda states: torch.matmul(states[0], weight.detach().T), (states,))
        assert torch.autograd.gradcheck(
            lambda query: nn.functional.scaled_dot_product_attention(query, query, query), (query,)
        )
        for activation in (nn.functional.silu, nn.functional.gelu, nn.functional.softplus):
            assert torch.autograd.gradcheck(activation, (states,))
        large = torch.tensor([-1e4, 1e4], requires_grad=True)
        sum(
            activation(large).sum() for activation in (nn.functional.silu, nn.functional.gelu, nn.functional.softplus)
        ).backward()
    assert large.grad.tolist() == [0, 3]


def test_other_devices_and_compiled_code_keep_their_functions(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("called")

    module = "transformers_cvis.kernels.batch_invariance._products"
    monkeypatch.setattr(module, refuse)
    layer = nn.Linear(4, 4)

    def run(states):
        with BatchInvariance():
            return layer(states)

    assert torch.compile(run, backend="eager", fullgraph=True)(torch.randn(2, 3, 4)).shape == (2, 3, 4)
    with pytest.raises(AssertionError, match="called"):
        run(torch.randn(2, 3, 4))
    layer.to("meta")
    assert run(torch.randn(2, 3, 4, device="meta")).shape == (2, 3, 4)
