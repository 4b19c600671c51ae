# SPDX-License-Identifier: Apache-2.0
"""Our deformable attention against the grid_sample version of transformers' Mask2Former.

2 frames of 384x640: levels of 12x20, 24x40 and 48x80 pixels, each pixel a query, 8 heads of 32 channels, 4 points. The
peer runs eagerly in all rows, as in transformers.
"""

from collections.abc import Callable, Iterator

import torch
from _harness import compare, main
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

from transformers_cvis.kernels import MultiScaleDeformableAttention

SHAPES = [(12, 20), (24, 40), (48, 80)]
BATCH, HEADS, HEAD_DIM, POINTS = 2, 8, 32, 4


def rows(quick: bool) -> Iterator[dict]:
    repeats = 5 if quick else 20
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tensors = inputs(device)
    sizes = torch.tensor(SHAPES, device=device)
    starts = torch.cat((sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]))
    layer = MultiScaleDeformableAttention()
    compiled = torch.compile(layer, fullgraph=True)

    def ours(
        value: torch.Tensor,
        locations: torch.Tensor,
        weights: torch.Tensor,
        layer: Callable[..., torch.Tensor] = layer,
    ) -> torch.Tensor:
        return layer(value, sizes, SHAPES, starts, locations, weights, BATCH)

    def peer(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return multi_scale_deformable_attention(value, SHAPES, locations, weights)

    def forward_backward(function: Callable[..., torch.Tensor]) -> None:
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        function(*leaves).sum().backward()

    with torch.no_grad():
        error = (ours(*tensors) - peer(*tensors)).abs().max().item()
        assert error < 1e-4, error
        note = "2 frames of 384x640, fp32"
        yield compare("forward", lambda: ours(*tensors), lambda: peer(*tensors), note=note, repeats=repeats)
    yield compare(
        "forward_backward", lambda: forward_backward(ours), lambda: forward_backward(peer), note=note, repeats=repeats
    )
    with torch.no_grad():
        yield compare(
            "forward_compiled",
            lambda: ours(*tensors, layer=compiled),
            lambda: peer(*tensors),
            note=f"{note}; ours with torch.compile, the peer eager",
            repeats=repeats,
            warmup=2,
        )


def inputs(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return values, sampling locations and weights: each pixel samples a few pixels around itself, some outside."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.cat([torch.cartesian_prod(axis(height), axis(width)).flip(-1) for height, width in SHAPES])
    num_queries, num_levels = len(centres), len(SHAPES)
    value = torch.randn(BATCH, num_queries, HEADS, HEAD_DIM, generator=generator)
    offsets = torch.randn(BATCH, num_queries, HEADS, num_levels, POINTS, 2, generator=generator) * 0.05
    weights = torch.randn(BATCH, num_queries, HEADS, num_levels * POINTS, generator=generator).softmax(-1)
    locations = centres[:, None, None, None] + offsets
    return value.to(device), locations.to(device), weights.view(offsets.shape[:-1]).to(device)


def axis(size: int) -> torch.Tensor:
    """Return the centres of `size` pixels, in 0..1."""
    return (torch.arange(size) + 0.5) / size


if __name__ == "__main__":
    main("Multi-scale deformable attention: one weighted gather-sum against grid_sample per level", rows)
