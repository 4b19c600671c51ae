# SPDX-License-Identifier: Apache-2.0
"""Sizes that all models and the video processor share."""

SIZE_DIVISOR = 32
"""Divisor of the height and width of a network input, in pixels: the stride of the coarsest feature map."""

MASK_STRIDE = 4
"""Pixels of the network input along each axis per pixel of the mask logits."""
