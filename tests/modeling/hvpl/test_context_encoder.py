# SPDX-License-Identifier: Apache-2.0
"""HVPL's video context encoder: isolation, axes and dtypes."""

import math

import pytest
import torch
from transformers import PreTrainedConfig

from transformers_cvis.kernels import kernel_report
from transformers_cvis.modeling.hvpl import ContextEncoder, TreeStateSpace
from transformers_cvis.modeling.modeling_base import CvisPreTrainedModel

HIDDEN_DIM = 32


def encoder(seed: int = 0, num_layers: int = 2, **options) -> ContextEncoder:
    torch.manual_seed(seed)
    return ContextEncoder(num_layers, HIDDEN_DIM, 64, **options).eval()


def queries(batch_size: int = 2, num_frames: int = 3, num_queries: int = 7, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch_size, num_frames, num_queries, HIDDEN_DIM, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("scan_axes", ["frames_queries", "released"])
def test_tasks_do_not_see_each_other(scan_axes):
    context_encoder = encoder(scan_axes=scan_axes)
    tasks = torch.stack([queries(seed=1), queries(seed=2)])  # (tasks, B, T, F, C)
    together = context_encoder(tasks)
    assert together.shape == tasks.shape
    alone = torch.stack([context_encoder(task) for task in tasks])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_by_default_frames_inform_each_other_and_videos_do_not():
    frame_queries = queries()
    context_encoder = encoder()
    torch.testing.assert_close(context_encoder(frame_queries)[:1], context_encoder(frame_queries[:1]))
    changed = frame_queries.clone()
    changed[:, -1] = 0
    assert not torch.allclose(context_encoder(changed)[:, 0], context_encoder(frame_queries)[:, 0])


@torch.no_grad()
def test_on_released_axes_videos_inform_each_other_and_frames_do_not():
    frame_queries = queries()
    context_encoder = encoder(scan_axes="released")
    torch.testing.assert_close(context_encoder(frame_queries)[:, :1], context_encoder(frame_queries[:, :1]))
    changed = frame_queries.clone()
    changed[1] = 0
    assert not torch.allclose(context_encoder(changed)[0], context_encoder(frame_queries)[0])


def test_every_parameter_learns():
    context_encoder = encoder().train()
    for layer in context_encoder.layers:
        layer.drop_path.p = 0.0
    frame_queries = queries().requires_grad_()
    context_encoder(frame_queries).square().sum().backward()
    assert [name for name, parameter in context_encoder.named_parameters() if not parameter.grad.abs().sum() > 0] == []
    assert frame_queries.grad.isfinite().all()


def test_branches_are_dropped_per_video_in_training_only():
    context_encoder = encoder(num_layers=3, drop_path_rate=0.4)
    assert [layer.drop_path.p for layer in context_encoder.layers] == pytest.approx([0.0, 0.2, 0.4])
    layer = context_encoder.layers[-1]
    layer.drop_path.p = 0.5
    hidden_states = queries(batch_size=1).expand(64, -1, -1, -1)
    with torch.no_grad():
        torch.testing.assert_close(layer(hidden_states)[:1], layer(hidden_states[:1]))
        torch.manual_seed(0)
        dropped = layer.train()(hidden_states)
    untouched = (dropped == hidden_states).flatten(1).all(1)
    assert 4 <= untouched.sum() <= 28  # both branches of a video, a quarter of 64


@torch.no_grad()
def test_half_precision_and_autocast():
    context_encoder, frame_queries = encoder(), queries()
    expected = context_encoder(frame_queries)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (context_encoder(frame_queries) - expected).abs().mean() < 0.05
    half = context_encoder.bfloat16()(frame_queries.bfloat16())
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()


class Model(CvisPreTrainedModel):
    config_class = PreTrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.state_space = TreeStateSpace(64)
        self.post_init()


def test_initial_values():
    torch.manual_seed(0)
    state_space = Model(PreTrainedConfig()).state_space
    steps = torch.nn.functional.softplus(state_space.dt_proj.bias)
    assert steps.min() >= 0.99e-3
    assert steps.max() <= 1.01e-1
    assert steps.std() > 1e-2
    assert state_space.dt_proj.weight.abs().max() <= state_space.step_rank**-0.5
    assert (state_space.A_log == 0).all()
    assert (state_space.D == 1).all()
    assert state_space.conv2d.weight.abs().max() <= math.sqrt(1 / 9)


def test_the_scan_is_a_kernel_layer():
    assert list(kernel_report(encoder())) == ["layers.0.state_space.tree_scan", "layers.1.state_space.tree_scan"]


def test_unknown_axes_are_named():
    with pytest.raises(ValueError, match="`scan_axes` must be one of 'frames_queries', 'released', got 'frames'"):
        encoder(scan_axes="frames")
