# SPDX-License-Identifier: Apache-2.0
"""Deformable attention against the reference: the core operation, and the pixel decoder's layer around it."""

import pytest
import torch

from tests.support.goldens import assert_matches, load_case
from transformers_cvis.kernels import MultiScaleDeformableAttention
from transformers_cvis.modeling.frame_detector.pixel_decoder import DeformableSelfAttention


def level_geometry(shapes: list[tuple[int, int]]) -> tuple:
    """Return heights and widths of the levels as a tensor and as a list, and the first token of each."""
    sizes = torch.tensor(shapes)
    return sizes, shapes, torch.cat((sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_msdeform_op(dtype, tolerance):
    case = load_case("msdeform_op")
    inputs = [case.inputs[name].to(dtype) for name in ("value", "sampling_locations", "attention_weights")]
    for tensor in inputs:
        tensor.requires_grad_()
    value, sampling_locations, attention_weights = inputs
    shapes = [tuple(shape) for shape in case.inputs["spatial_shapes"].tolist()]
    layer = MultiScaleDeformableAttention()
    output = layer(value, *level_geometry(shapes), sampling_locations, attention_weights, value.shape[0])
    output.backward(case.inputs["grad_output"].to(dtype))
    assert_matches(output, case.outputs["output"], "output", tolerance)
    for name in ("value", "sampling_locations", "attention_weights"):
        actual = dict(zip(("value", "sampling_locations", "attention_weights"), inputs, strict=True))[name].grad
        assert_matches(actual, case.outputs[f"grad_{name}"], f"grad_{name}", tolerance)


def test_msdeform_module():
    """Compare the pixel decoder's attention. The reference also had padding, which counts as image here."""
    case = load_case("msdeform_module")
    shapes = [tuple(shape) for shape in case.inputs["spatial_shapes"].tolist()]
    module = DeformableSelfAttention(case.config["hidden"], case.config["heads"]).double()
    module.load_state_dict(case.state_dict())
    padding = case.inputs["padding_mask"].bool()[..., None]
    module.value_proj.register_forward_hook(lambda module, inputs, value: value.masked_fill(padding, 0))

    features = case.inputs["features"].requires_grad_()
    positions = (case.inputs["query"] - features.detach()).requires_grad_()
    # (N, S, levels, 2); the reference has different locations on each level
    reference_points = case.inputs["reference_points"][:, :, None, :, None]
    output = module(features, positions, reference_points, *level_geometry(shapes))
    output.backward(case.inputs["grad_output"])
    assert_matches(output, case.outputs["output"], "output", case.tolerance)
    assert_matches(positions.grad, case.outputs["grad_query"], "grad_query", case.tolerance)
    # The gradient of the features through the queries is that of the positions.
    assert_matches(features.grad - positions.grad, case.outputs["grad_features"], "grad_features", case.tolerance)
