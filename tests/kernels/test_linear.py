# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from transformers_cvis.kernels import Linear, PointwiseConvolution, linear, pointwise_convolution


@pytest.mark.parametrize("shape", [(7, 16), (2, 5, 16), (0, 16)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_pytorch(shape, bias):
    layer = Linear(16, 24, bias=bias)
    inputs = torch.randn(shape)
    expected = nn.functional.linear(inputs, layer.weight, layer.bias)
    with torch.no_grad():
        torch.testing.assert_close(layer(inputs), expected, rtol=1e-5, atol=1e-5)
        strided = torch.randn(*shape[:-1], 32)[..., ::2]
        torch.testing.assert_close(
            layer(strided), nn.functional.linear(strided, layer.weight, layer.bias), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pointwise_convolution_equals_pytorch(dtype):
    layer = PointwiseConvolution(8, 12).to(dtype)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    for memory_format in (torch.channels_last, torch.contiguous_format):
        inputs = torch.randn(2, 8, 5, 6, dtype=dtype).contiguous(memory_format=memory_format)
        expected = nn.functional.conv2d(inputs, layer.weight, layer.bias)
        with torch.no_grad():
            actual = layer(inputs)
        torch.testing.assert_close(actual, expected, **tolerance)
        assert actual.is_contiguous(memory_format=memory_format)


def test_gradients_take_the_usual_path():
    inputs = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(linear, (inputs, weight))
    images, kernel = torch.randn(1, 4, 2, 2), torch.randn(5, 4, 1, 1, requires_grad=True)
    pointwise_convolution(images.contiguous(memory_format=torch.channels_last), kernel).sum().backward()
    assert kernel.grad.abs().sum() > 0


@torch.no_grad()
def test_autocast_is_respected():
    layer = Linear(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(2, 4)).dtype == torch.bfloat16


@torch.no_grad()
def test_without_onednn():
    layer, inputs = Linear(4, 4), torch.randn(2, 4)
    with torch.backends.mkldnn.flags(enabled=False):
        expected = layer(inputs)
    torch.testing.assert_close(layer(inputs), expected)
