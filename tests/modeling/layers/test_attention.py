# SPDX-License-Identifier: Apache-2.0
"""Attention through transformers' registry, and the eager path against PyTorch's."""

import pytest
import torch
from transformers import AttentionInterface, PreTrainedConfig

from transformers_cvis.kernels import BatchInvariance
from transformers_cvis.modeling.layers.attention import Attention, attend, eager_attention


def layer(implementation: str | None, hidden_dim: int = 32, dropout: float = 0.0) -> Attention:
    torch.manual_seed(0)
    return Attention(PreTrainedConfig(attn_implementation=implementation), hidden_dim, 4, dropout).eval()


def states(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_mask(*shape: int) -> torch.Tensor:
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(3)) < 0.5
    mask[..., 0] = True
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        None,
        some_mask(3, 5, 7),
        some_mask(3, 1, 7),
        torch.zeros(3, 5, 7, dtype=torch.float64).masked_fill(~some_mask(3, 5, 7), -1000.0),
    ],
    ids=["no mask", "boolean", "one row for all", "additive"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@torch.no_grad()
def test_eager_equals_sdpa(mask, dtype):
    inputs = [part.to(dtype) for part in (states(3, 5, 32), states(3, 7, 32, seed=1), states(3, 7, 32, seed=2))]
    eager, sdpa = (layer(name).to(dtype)(*inputs, mask) for name in ("eager", "sdpa"))
    assert eager.dtype == sdpa.dtype == dtype
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(eager, sdpa, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_axes_before_the_elements(implementation):
    queries, keys, mask = states(2, 3, 5, 32), states(2, 3, 7, 32, seed=1), some_mask(2, 3, 5, 7)
    module = layer(implementation)
    together = attend(module, queries, keys, keys, mask)
    apart = [attend(module, *parts) for parts in zip(queries, keys, keys, mask, strict=True)]
    torch.testing.assert_close(together, torch.stack(apart))


@torch.no_grad()
def test_layer_outside_of_a_model_takes_sdpa(monkeypatch):
    calls = []
    sdpa = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **kwargs: calls.append(1) or sdpa(*args, **kwargs),
    )
    layer(None)(*[states(1, 2, 32)] * 3)
    assert calls == [1]


@torch.no_grad()
def test_registered_function_runs_and_may_keep_the_weights():
    kept = []

    def keeping(*args, **kwargs):
        attended, weights = eager_attention(*args, **kwargs)
        kept.append(weights)
        return attended, weights

    AttentionInterface.register("cvis_test_keeping", keeping)
    try:
        layer("cvis_test_keeping")(states(3, 5, 32), states(3, 7, 32, seed=1), states(3, 7, 32, seed=2))
    finally:
        AttentionInterface._global_mapping.pop("cvis_test_keeping")
    (weights,) = kept
    assert weights.shape == (3, 4, 5, 7)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 4, 5))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_dropout_acts_in_training_only(implementation):
    module, inputs = layer(implementation, dropout=0.5), [states(3, 5, 32)] * 3
    torch.testing.assert_close(module(*inputs), layer(implementation)(*inputs))
    assert not torch.allclose(module.train()(*inputs), module.eval()(*inputs))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("count", [1, 2, 5])
@torch.no_grad()
def test_batch_invariance(implementation, count):
    module = layer(implementation)
    queries, keys, mask = states(9, 10, 32), states(9, 33, 32, seed=1), some_mask(9, 10, 33)
    with BatchInvariance():
        everything = module(queries, keys, keys, mask)
        some = module(queries[:count], keys[:count], keys[:count], mask[:count])
    assert torch.equal(everything[:count], some)
