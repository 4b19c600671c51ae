# SPDX-License-Identifier: Apache-2.0
"""Frozen and trained batch norms of the frame detector."""

import pickle

import torch
from torch import nn

from tests.support.tiny_detector import frames, tiny_model
from transformers_cvis.modeling.frame_detector.frozen_batch_norm import FrozenBatchNorm2d, FrozenConvolutionBlock


def test_frozen_batch_norms_hold_no_parameters_and_keep_their_statistics():
    model = tiny_model()
    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert norms
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    assert not any("normalization" in name for name, _ in model.named_parameters())
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    pixels = model.model.pixel_level_module
    in_training = pixels.extract_features(model.train() and frames())
    in_evaluation = pixels.extract_features(model.eval() and frames())
    for first, second in zip(in_training, in_evaluation, strict=True):
        torch.testing.assert_close(first, second)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


def test_batch_norms_train_where_they_are_not_frozen():
    model = tiny_model(freeze_batch_norm=False).train()
    norm = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    before = norm.running_mean.clone()
    model(frames()).frame_queries.sum().backward()
    assert norm.weight.grad is not None
    assert not torch.equal(norm.running_mean, before)


@torch.no_grad()
def test_folded_weights_follow_their_sources():
    torch.manual_seed(0)
    convolution, norm = torch.nn.Conv2d(4, 6, 3, padding=1, bias=False), torch.nn.BatchNorm2d(6).eval()
    block = FrozenConvolutionBlock(convolution, FrozenBatchNorm2d(norm), torch.nn.ReLU())
    inputs = torch.randn(1, 4, 5, 5)

    def agree():
        frozen = block.normalization
        expected = nn.functional.batch_norm(
            block.convolution(inputs), frozen.running_mean, frozen.running_var, frozen.weight, frozen.bias
        ).relu()
        torch.testing.assert_close(block(inputs), expected)

    agree()
    block.convolution.weight.mul_(2)
    agree()
    block.load_state_dict({name: tensor + 1 for name, tensor in block.state_dict().items()})
    agree()
    block.double()
    inputs = inputs.double()
    agree()
    assert pickle.loads(pickle.dumps(block))._folded is None
