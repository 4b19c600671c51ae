"""Deformable attention against the reference: the core operation, and the attention module around it."""

import pytest
import torch
from parity.goldens import assert_matches, load_case
from torch import nn

from transformers_cvis.kernels import MultiScaleDeformableAttention


def attend(value, shapes, sampling_locations, attention_weights):
    sizes = torch.tensor(shapes)
    starts = torch.cat((sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]))
    layer = MultiScaleDeformableAttention()
    return layer(value, sizes, shapes, starts, sampling_locations, attention_weights, value.shape[0])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_msdeform_op(dtype, tolerance):
    case = load_case("msdeform_op")
    inputs = [case.inputs[name].to(dtype) for name in ("value", "sampling_locations", "attention_weights")]
    for tensor in inputs:
        tensor.requires_grad_()
    value, sampling_locations, attention_weights = inputs
    shapes = [tuple(shape) for shape in case.inputs["spatial_shapes"].tolist()]
    output = attend(value, shapes, sampling_locations, attention_weights)
    output.backward(case.inputs["grad_output"].to(dtype))
    assert_matches(output, case.outputs["output"], "output", tolerance)
    for name in ("value", "sampling_locations", "attention_weights"):
        actual = dict(zip(("value", "sampling_locations", "attention_weights"), inputs, strict=True))[name].grad
        assert_matches(actual, case.outputs[f"grad_{name}"], f"grad_{name}", tolerance)


class AttentionModule(nn.Module):
    """The smallest module around the core: projections, offsets in pixels of their level, softmax over all samples."""

    def __init__(self, hidden: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(hidden, heads * levels * points * 2)
        self.attention_weights = nn.Linear(hidden, heads * levels * points)
        self.value_proj = nn.Linear(hidden, hidden)
        self.output_proj = nn.Linear(hidden, hidden)

    def forward(self, query, features, reference_points, padding_mask, shapes):
        batch, tokens, hidden = query.shape
        value = self.value_proj(features).masked_fill(padding_mask[..., None], 0)
        value = value.view(batch, -1, self.heads, hidden // self.heads)
        offsets = self.sampling_offsets(query).view(batch, tokens, self.heads, self.levels, self.points, 2)
        weights = self.attention_weights(query).view(batch, tokens, self.heads, -1).softmax(-1)
        sizes = offsets.new_tensor([(width, height) for height, width in shapes])
        locations = reference_points[:, :, None, :, None] + offsets / sizes[:, None]
        output = attend(value, shapes, locations, weights.view(offsets.shape[:-1]))
        return self.output_proj(output)


def test_msdeform_module():
    case = load_case("msdeform_module")
    shapes = [tuple(shape) for shape in case.inputs["spatial_shapes"].tolist()]
    config = case.config
    module = AttentionModule(config["hidden"], config["heads"], len(shapes), config["points"]).double()
    module.load_state_dict(case.state_dict())
    query, features = (case.inputs[name].requires_grad_() for name in ("query", "features"))
    mask = case.inputs["padding_mask"].bool()
    output = module(query, features, case.inputs["reference_points"], mask, shapes)
    output.backward(case.inputs["grad_output"])
    assert_matches(output, case.outputs["output"], "output", case.tolerance)
    assert_matches(query.grad, case.outputs["grad_query"], "grad_query", case.tolerance)
    assert_matches(features.grad, case.outputs["grad_features"], "grad_features", case.tolerance)
