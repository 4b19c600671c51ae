# SPDX-License-Identifier: Apache-2.0
"""Sine position embeddings of feature maps and of the frames of a clip."""

import math

import torch

from ...precision import at_least_float32_dtype

_MAX_CACHED_SIZES = 16
_cache: dict[tuple, torch.Tensor] = {}


def sine_position_embedding(
    height: int, width: int, num_channels: int, *, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Two-dimensional sine position embedding of a map, one row per position (row-major).

    Positions count from 1 and are normalised to (0, 2 pi]; the first half of the channels encodes y, the second x,
    sines and cosines interleaved (DETR, appendix A.4, with temperature 10,000). Computed in at least float32. Kept for
    the sizes in use: do not write to the result.

    Returns:
        `torch.Tensor` of shape `(height * width, num_channels)` and of type `dtype`.
    """
    if torch.compiler.is_compiling():
        return _sine_position_embedding(height, width, num_channels, device, dtype)
    key = (height, width, num_channels, device, dtype)
    if key not in _cache:
        if len(_cache) >= _MAX_CACHED_SIZES:
            _cache.pop(next(iter(_cache)))
        # A tensor made in inference mode could not take part in a later training step.
        with torch.inference_mode(False):
            _cache[key] = _sine_position_embedding(height, width, num_channels, device, dtype)
    return _cache[key]


def sine_frame_embedding(
    num_frames: int, num_channels: int, *, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """The third dimension of the embedding: what each frame of a clip adds to the embedding of its map.

    Frames count from 1 and are normalised to (0, 2 pi], as rows and columns are, but take all channels
    (Mask2Former for Video Instance Segmentation, section 2). Computed in at least float32.

    Returns:
        `torch.Tensor` of shape `(num_frames, num_channels)` and of type `dtype`.
    """
    return _encode(num_frames, num_channels, device, at_least_float32_dtype(dtype)).to(dtype)


def _sine_position_embedding(
    height: int, width: int, num_channels: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    compute_dtype = at_least_float32_dtype(dtype)
    num_features = num_channels // 2
    rows = _encode(height, num_features, device, compute_dtype)[:, None].expand(height, width, num_features)
    columns = _encode(width, num_features, device, compute_dtype)[None].expand(height, width, num_features)
    return torch.cat((rows, columns), dim=-1).flatten(0, 1).to(dtype)


def _encode(size: int, num_features: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The places 1 to `size` of one axis, `(size, num_features)`."""
    exponents = torch.arange(num_features, device=device, dtype=torch.int64) // 2 * 2
    wavelengths = 10000 ** (exponents.to(dtype) / num_features)
    positions = torch.arange(1, size + 1, device=device, dtype=dtype) / (size + 1e-6) * (2 * math.pi)
    angles = positions[:, None] / wavelengths
    return torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=-1).flatten(1)
