# SPDX-License-Identifier: Apache-2.0
"""Swin as defined in its article (Liu et al., ICCV 2021), computed from released tensors without modules.

B images, H x W places of a map, C channels, N = window * window tokens of a window.
"""

import math

import torch
from torch import nn

FORBIDDEN = -100.0  # added to the logits between tokens that a shifted window brings together


def swin_maps(pixels: torch.Tensor, released: dict[str, torch.Tensor], depths: tuple[int, ...]) -> list[torch.Tensor]:
    """Return the four maps (B, C, H, W) of images (B, 3, 4 H, 4 W), each after its own norm."""

    def norm(tokens: torch.Tensor, name: str) -> torch.Tensor:
        return nn.functional.layer_norm(tokens, tokens.shape[-1:], released[f"{name}.weight"], released[f"{name}.bias"])

    def linear(tokens: torch.Tensor, name: str) -> torch.Tensor:
        return nn.functional.linear(tokens, released[f"{name}.weight"], released.get(f"{name}.bias"))

    def attention(tokens: torch.Tensor, name: str, mask: torch.Tensor | None) -> torch.Tensor:
        """Attend within windows (B * windows, N, C); `mask` is (windows, N, N)."""
        table = released[f"{name}.relative_position_bias_table"]  # (offsets, heads)
        num_heads, side = table.shape[1], math.isqrt(tokens.shape[1])
        queries, keys, values = (
            part.unflatten(2, (num_heads, -1)).transpose(1, 2) for part in linear(tokens, f"{name}.qkv").chunk(3, dim=2)
        )
        logits = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[-1])
        place = torch.cartesian_prod(torch.arange(side), torch.arange(side))
        offset = place[:, None] - place[None] + side - 1  # (N, N, 2)
        logits = logits + table[offset[..., 0] * (2 * side - 1) + offset[..., 1]].permute(2, 0, 1)
        if mask is not None:
            logits = (logits.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        return linear((logits.softmax(-1) @ values).transpose(1, 2).flatten(2), f"{name}.proj")

    def block(tokens: torch.Tensor, name: str, shifted: bool) -> torch.Tensor:
        height, width = tokens.shape[1:3]
        side = (math.isqrt(len(released[f"{name}.attn.relative_position_bias_table"])) + 1) // 2
        shift = side // 2 if shifted else 0
        padded = nn.functional.pad(norm(tokens, f"{name}.norm1"), (0, 0, 0, -width % side, 0, -height % side))
        rolled = padded.roll((-shift, -shift), (1, 2))
        mask = region_mask(*rolled.shape[1:3], side, shift) if shifted else None
        attended = from_windows(attention(to_windows(rolled, side), f"{name}.attn", mask), *rolled.shape[1:3])
        attended = attended.roll((shift, shift), (1, 2))[:, :height, :width]
        tokens = tokens + attended
        hidden = nn.functional.gelu(linear(norm(tokens, f"{name}.norm2"), f"{name}.mlp.fc1"))
        return tokens + linear(hidden, f"{name}.mlp.fc2")

    patches = nn.functional.conv2d(
        pixels, released["backbone.patch_embed.proj.weight"], released["backbone.patch_embed.proj.bias"], stride=4
    )
    tokens = norm(patches.permute(0, 2, 3, 1), "backbone.patch_embed.norm")
    maps = []
    for stage, depth in enumerate(depths):
        for number in range(depth):
            tokens = block(tokens, f"backbone.layers.{stage}.blocks.{number}", shifted=number % 2 == 1)
        maps.append(norm(tokens, f"backbone.norm{stage}").permute(0, 3, 1, 2))
        if stage + 1 < len(depths):
            height, width = tokens.shape[1:3]
            even = nn.functional.pad(tokens, (0, 0, 0, width % 2, 0, height % 2))
            corners = [even[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
            name = f"backbone.layers.{stage}.downsample"
            tokens = linear(norm(torch.cat(corners, dim=-1), f"{name}.norm"), f"{name}.reduction")
    return maps


def to_windows(tokens: torch.Tensor, side: int) -> torch.Tensor:
    """Split (B, H, W, C) into windows (B * windows, N, C)."""
    rows = tokens.unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return rows.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def from_windows(windows: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Join windows (B * windows, N, C) to (B, H, W, C)."""
    side = math.isqrt(windows.shape[1])
    grid = windows.unflatten(1, (side, side)).unflatten(0, (-1, height // side, width // side))
    return grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def region_mask(height: int, width: int, side: int, shift: int) -> torch.Tensor:
    """Return (windows, N, N): `FORBIDDEN` between places of a rolled map that were not neighbours before."""

    def region(length: int) -> torch.Tensor:
        return (torch.arange(length) >= length - side).int() + (torch.arange(length) >= length - shift).int()

    regions = 3 * region(height)[:, None] + region(width)[None]
    windows = to_windows(regions[None, :, :, None], side)[..., 0]
    return (windows[:, :, None] != windows[:, None]).double() * FORBIDDEN
