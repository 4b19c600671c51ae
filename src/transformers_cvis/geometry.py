# SPDX-License-Identifier: Apache-2.0
"""Sizes that every model and the video processor agree on."""

SIZE_DIVISOR = 32
"""Height and width of the network's input are multiples of it: the stride of the coarsest map."""

MASK_STRIDE = 4
"""Pixels of the network's input, along each axis, per pixel of its mask logits."""
