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
    """Return the two-dimensional sine position embedding of a map.

    Positions count from 1 and are normalised to (0, 2 pi]. The first half of the channels encodes y, the second x, with
    sines and cosines interleaved (DETR, appendix A.4, with temperature 10,000). Computed in at least float32. The
    result is cached: do not write to it.

    Args:
        height: rows of the map.
        width: columns of the map.
        num_channels: channels of the embedding; a multiple of 4.
        device: device of the result.
        dtype: type of the result.

    Returns:
        One row per position, row-major, `(height * width, num_channels)`.
    """
    if torch.compiler.is_compiling():
        return _sine_position_embedding(height, width, num_channels, device, dtype)
    key = (height, width, num_channels, device, dtype)
    if key not in _cache:
        if len(_cache) >= _MAX_CACHED_SIZES:
            _cache.pop(next(iter(_cache)))
        # A tensor created in inference mode could not be used in a later training step.
        with torch.inference_mode(False):
            _cache[key] = _sine_position_embedding(height, width, num_channels, device, dtype)
    return _cache[key]


def sine_frame_embedding(
    num_frames: int, num_channels: int, *, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """Return the sine embedding of time, which is added to the position embedding of each frame's map.

    Frames count from 1 and are normalised to (0, 2 pi], like rows and columns, but use all channels (Mask2Former for
    Video Instance Segmentation, section 2). Computed in at least float32.

    Args:
        num_frames: frames of the clip.
        num_channels: channels of the embedding; an even number.
        device: device of the result.
        dtype: type of the result.

    Returns:
        One row per frame, `(num_frames, num_channels)`.
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
    """Encode the positions 1 to `size` of one axis, `(size, num_features)`."""
    exponents = torch.arange(num_features, device=device, dtype=torch.int64) // 2 * 2
    wavelengths = 10000 ** (exponents.to(dtype) / num_features)
    positions = torch.arange(1, size + 1, device=device, dtype=dtype) / (size + 1e-6) * (2 * math.pi)
    angles = positions[:, None] / wavelengths
    return torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=-1).flatten(1)
