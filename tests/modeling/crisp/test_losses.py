# SPDX-License-Identifier: Apache-2.0
"""Losses of CRISP against plain loops."""

import math

import pytest
import torch

from transformers_cvis.modeling.crisp.losses import contrastive_loss, correlation_loss, match_prompts


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(first, second):
    return (first @ second / (first.norm() * second.norm())).item()


def test_queries_are_matched_to_the_most_similar_prompt():
    queries, prompts = random(6, 8), random(4, 8, seed=1) * torch.tensor([1.0, 5.0, 0.2, 1.0])[:, None]
    by_cosine = [max(range(4), key=lambda j: cosine(query, prompts[j])) for query in queries]
    by_dot = [max(range(4), key=lambda j: (query @ prompts[j]).item()) for query in queries]
    assert match_prompts(queries, prompts).tolist() == by_cosine
    assert match_prompts(queries, prompts, "dot").tolist() == by_dot
    assert by_cosine != by_dot


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_contrastive_loss_is_that_of_the_article(similarity):
    queries, prompts = random(6, 8).requires_grad_(), random(4, 8, seed=1).requires_grad_()
    matched = match_prompts(queries, prompts)
    total = 0.0
    for query, index in zip(queries, matched.tolist(), strict=True):
        scores = [cosine(query, prompt) if similarity == "cosine" else (query @ prompt).item() for prompt in prompts]
        others = sum(math.exp(score) for j, score in enumerate(scores) if j != index)
        total += math.log(1 + others / math.exp(scores[index]))
    loss = contrastive_loss(queries, prompts, matched, similarity)
    assert loss.item() == pytest.approx(total / 6)
    loss.backward()
    assert queries.grad.any()
    assert prompts.grad.any()


def test_contrastive_loss_does_not_overflow():
    queries, prompts = 1e3 * random(6, 8).float(), 1e3 * random(4, 8, seed=1).float()
    loss = contrastive_loss(queries, prompts, match_prompts(queries, prompts))
    assert loss.isfinite()
    assert contrastive_loss(queries, prompts[:1], torch.zeros(6, dtype=torch.long)) == 0


def test_correlation_loss():
    queries, target = random(2, 5, 8), torch.eye(5, dtype=torch.float64)
    expected = [(cosine(clip[i], clip[j]) - (i == j)) ** 2 for clip in queries for i in range(5) for j in range(5)]
    assert correlation_loss(queries, target).item() == pytest.approx(sum(expected) / len(expected))


def test_autocast_leaves_losses_in_full_precision():
    queries, prompts = random(6, 8).float(), random(4, 8, seed=1).float()
    matched = match_prompts(queries, prompts)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(match_prompts(queries, prompts), matched)
        inside = contrastive_loss(queries, prompts, matched), correlation_loss(queries[None], torch.eye(6))
    outside = contrastive_loss(queries, prompts, matched), correlation_loss(queries[None], torch.eye(6))
    assert all(torch.equal(*pair) for pair in zip(inside, outside, strict=True))
