# SPDX-License-Identifier: Apache-2.0
"""The gather-sum against transformers' grid_sample version: values, gradients, edges, dtypes, compile and export."""

import pytest
import torch
from torch.autograd import gradcheck
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

from transformers_cvis.kernels import MultiScaleDeformableAttention

SHAPES = [(3, 5), (1, 1), (2, 1), (1, 4), (6, 7)]


def inputs(dtype=torch.float64, heads=3, head_dim=5, queries=7, batch=2, shapes=SHAPES, points=2, spread=2.0, seed=0):
    """Return values, sampling locations (many outside), and weights that do not sum to one."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(height * width for height, width in shapes)
    value = torch.randn(batch, tokens, heads, head_dim, dtype=dtype, generator=generator)
    locations = torch.rand(batch, queries, heads, len(shapes), points, 2, dtype=dtype, generator=generator) * spread
    weights = torch.rand(batch, queries, heads, len(shapes), points, dtype=dtype, generator=generator)
    return value, locations - (spread - 1) / 2, weights


def ours(value, locations, weights, shapes=SHAPES, layer=None):
    sizes = torch.tensor(shapes, device=value.device)
    starts = torch.cat((sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]))
    layer = MultiScaleDeformableAttention() if layer is None else layer
    return layer(value, sizes, shapes, starts, locations, weights, value.shape[0])


def grid_sample(shapes):
    return lambda value, locations, weights: multi_scale_deformable_attention(value, shapes, locations, weights)


def gradients(function, tensors):
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    output = function(*tensors)
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view_as(output)
    return output.detach(), torch.autograd.grad(output, tensors, weight)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"spread": 1.0},
        {"spread": 20.0},
        {"shapes": [(1, 1)], "points": 1, "heads": 1, "head_dim": 1, "queries": 1, "batch": 1},
        {"shapes": [(12, 20), (24, 40)], "heads": 8, "head_dim": 32, "queries": 40, "points": 4},
    ],
    ids=["mixed levels", "inside", "far outside", "one pixel", "usual size"],
)
def test_equals_grid_sample(dtype, tolerance, settings):
    shapes = settings.get("shapes", SHAPES)
    tensors = inputs(dtype, **settings)
    actual = gradients(lambda *t: ours(*t, shapes), tensors)
    expected = gradients(grid_sample(shapes), tensors)
    torch.testing.assert_close(actual[0], expected[0], rtol=tolerance, atol=tolerance)
    for one, other in zip(actual[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * max(1, other.abs().max().item()))


def test_gradcheck():
    tensors = inputs(queries=3, heads=2, head_dim=2, batch=1)
    assert gradcheck(ours, [tensor.requires_grad_() for tensor in tensors])


def test_locations_on_pixel_centres_have_the_gradient_of_grid_sample():
    """The initial offsets of deformable attention are whole pixels, where bilinear weights have a kink."""
    shapes = [(4, 4)]
    value, _, weights = inputs(shapes=shapes, queries=36, heads=1, points=1)
    centres = (torch.arange(-1, 5, dtype=torch.float64) + 0.5) / 4
    locations = torch.cartesian_prod(centres, centres).view(1, 36, 1, 1, 1, 2).repeat(2, 1, 1, 1, 1, 1)
    actual = gradients(lambda *t: ours(*t, shapes), (value, locations, weights))
    expected = gradients(grid_sample(shapes), (value, locations, weights))
    for one, other in zip(actual[1], expected[1], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("frozen", range(3))
def test_only_inputs_that_require_gradients_get_them(frozen):
    tensors = [tensor.requires_grad_(number != frozen) for number, tensor in enumerate(inputs())]
    ours(*tensors).sum().backward()
    assert [tensor.grad is None for tensor in tensors] == [number == frozen for number in range(3)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    tensors = inputs(torch.float32, spread=1.2)
    half = tensors[0].to(dtype), tensors[1], tensors[2].to(dtype)  # positions stay in float32, as under autocast
    expected, expected_gradients = gradients(ours, tensors)
    actual, actual_gradients = gradients(ours, half)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.float(), expected, rtol=0.05, atol=0.1)
    for one, other, source in zip(actual_gradients, expected_gradients, half, strict=True):
        assert one.dtype == source.dtype
        torch.testing.assert_close(one.float(), other, rtol=0.05, atol=0.05 * other.abs().max().item())


def test_not_a_number_reaches_the_output():
    value, locations, weights = inputs()
    locations[0, 3] = float("nan")
    output = ours(value, locations, weights)
    assert output[0, 3].isnan().all()
    assert output[1].isfinite().all()
    assert output[0, :3].isfinite().all()


def test_second_derivative_is_refused():
    tensors = [tensor.requires_grad_() for tensor in inputs()]
    first = torch.autograd.grad(ours(*tensors).pow(2).sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first[0].sum().backward()


def test_compiles_in_one_graph():
    layer = torch.compile(MultiScaleDeformableAttention(), fullgraph=True, backend="aot_eager")
    expected, expected_gradients = gradients(ours, inputs())
    actual, actual_gradients = gradients(lambda *t: ours(*t, layer=layer), inputs())
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(actual_gradients, expected_gradients)
    with torch.no_grad():
        torch.testing.assert_close(ours(*inputs(), layer=layer), expected)


@pytest.mark.slow
def test_compiles_with_inductor():
    layer = torch.compile(MultiScaleDeformableAttention(), fullgraph=True)
    expected, expected_gradients = gradients(ours, inputs(torch.float32))
    actual, actual_gradients = gradients(lambda *t: ours(*t, layer=layer), inputs(torch.float32))
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(actual_gradients, expected_gradients, rtol=1e-4, atol=1e-4)


def test_exports_with_a_dynamic_number_of_queries():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = MultiScaleDeformableAttention()

        def forward(self, value, locations, weights):
            return ours(value, locations, weights, layer=self.attention)

    queries = torch.export.Dim("queries", min=2, max=100)
    dynamic = ({}, {1: queries}, {1: queries})
    program = torch.export.export(Model(), inputs(), dynamic_shapes=dynamic)
    other = inputs(queries=11, seed=1)
    torch.testing.assert_close(program.module()(*other), ours(*other))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_cuda_equals_cpu(dtype):
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5}.get(dtype, 0.1)
    tensors = [tensor.to(dtype) for tensor in inputs(torch.float32, spread=1.2)]
    expected, expected_gradients = gradients(ours, tensors)
    actual, actual_gradients = gradients(ours, [tensor.cuda() for tensor in tensors])
    torch.testing.assert_close(actual.cpu(), expected, rtol=tolerance, atol=tolerance)
    for one, other in zip(actual_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=tolerance, atol=tolerance * max(1, other.abs().max().item()))


def test_levels_that_do_not_fill_the_value_are_refused():
    value, locations, weights = inputs()
    with pytest.raises(ValueError, match=r"value has shape \(2, 64, 3, 5\), but the levels .* need \(batch, 12, heads"):
        ours(value, locations, weights, shapes=[(3, 4)])


def test_locations_of_another_number_of_levels_are_refused():
    value, locations, weights = inputs()
    with pytest.raises(ValueError, match=r"sampling_locations has shape .* expected \(2, queries, 3, 5, points, 2\)"):
        ours(value, locations[:, :, :, :2], weights[:, :, :, :2])


def test_weights_of_another_shape_are_refused():
    value, locations, weights = inputs()
    with pytest.raises(ValueError, match=r"attention_weights has shape \(2, 6, 3, 5, 2\), expected \(2, 7, 3, 5, 2\)"):
        ours(value, locations, weights[:, 1:])
