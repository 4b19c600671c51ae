# SPDX-License-Identifier: Apache-2.0
"""Mask logits as products of embeddings with features."""

import torch

from transformers_cvis.modeling.layers.mask_logits import frame_mask_logits, group_mask_logits, mask_logits


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_one_embedding_for_all_frames():
    embeddings, features = draw(2, 5, 8), draw(2, 3, 8, 4, 6, seed=1)
    expected = torch.einsum("bqc,btchw->bqthw", embeddings, features)
    torch.testing.assert_close(mask_logits(embeddings, features), expected)


def test_one_embedding_for_each_frame():
    embeddings, features = draw(2, 3, 5, 8), draw(2, 3, 8, 4, 6, seed=1)
    expected = torch.einsum("btqc,btchw->bqthw", embeddings, features)
    torch.testing.assert_close(mask_logits(embeddings, features), expected)
    torch.testing.assert_close(frame_mask_logits(embeddings, features), expected.transpose(1, 2))


def test_images():
    embeddings, features = draw(2, 5, 8), draw(2, 8, 4, 6, seed=1)
    expected = torch.einsum("nqc,nchw->nqhw", embeddings, features)
    torch.testing.assert_close(frame_mask_logits(embeddings, features), expected)


def test_groups_on_the_same_images():
    embeddings, features = draw(3, 2, 5, 8), draw(2, 8, 5000, seed=1)
    expected = torch.einsum("gnqc,ncs->gnqs", embeddings, features)
    torch.testing.assert_close(group_mask_logits(embeddings, features), expected)
    torch.testing.assert_close(group_mask_logits(embeddings[0], features), expected[0])
