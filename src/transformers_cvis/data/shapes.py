# SPDX-License-Identifier: Apache-2.0
"""Outlines of the moving shapes, as signed distance functions in local coordinates."""

import math
from collections.abc import Callable, Sequence

import numpy as np

LOCAL_EXTENT = 1.2  # every shape lies within [-1.2, 1.2]^2 of its local coordinates

SignedDistance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Computes the distance to an outline from local x and y, negative inside; arguments and result have one shape."""


def _polygon(vertices: Sequence[tuple[float, float]]) -> SignedDistance:
    """Build the signed distance to a closed polygon, by the even-odd rule.

    Args:
        vertices: x and y of each corner.
    """
    starts = np.asarray(vertices, dtype=np.float64)
    ends = np.roll(starts, -1, axis=0)

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Compute the distance to the nearest edge."""
        nearest = np.full(x.shape, np.inf)
        inside = np.zeros(x.shape, dtype=bool)
        for (start_x, start_y), (end_x, end_y) in zip(starts, ends, strict=True):
            edge_x, edge_y = end_x - start_x, end_y - start_y
            from_x, from_y = x - start_x, y - start_y
            along = np.clip((from_x * edge_x + from_y * edge_y) / (edge_x**2 + edge_y**2), 0, 1)
            nearest = np.minimum(nearest, (from_x - along * edge_x) ** 2 + (from_y - along * edge_y) ** 2)
            if edge_y:
                # Comparing with the vertices themselves makes neighbouring edges agree at the height of a vertex.
                crosses = (y >= start_y) != (y >= end_y)
                inside ^= crosses & (from_x < from_y * (edge_x / edge_y))
        return np.where(inside, -1, 1) * np.sqrt(nearest)

    return distance


def star_vertices(num_points: int, inner_radius: float) -> list[tuple[float, float]]:
    """Return the corners of a star with outer radius 1; the first point is at the top."""
    angles = np.arange(2 * num_points) * math.pi / num_points
    radii = np.where(np.arange(2 * num_points) % 2, inner_radius, 1.0)
    return list(zip(radii * np.sin(angles), -radii * np.cos(angles), strict=True))


def heart_vertices(num_vertices: int = 28) -> list[tuple[float, float]]:
    """Return the corners of a polygon in the form of a heart."""
    t = np.arange(num_vertices) * 2 * math.pi / num_vertices
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return list(zip(x / 16, -(y + 2.5) / 16, strict=True))


def _mirrored(half: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Complete the right half of a polygon, from top to bottom, by its mirror image."""
    return half + [(-x, y) for x, y in reversed(half)]


SHAPES: dict[str, SignedDistance] = {
    "circle": lambda x, y: np.hypot(x, y) - 0.9,
    "square": _polygon([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]),
    "triangle": _polygon([(0, -1.1), (1.0, 0.7), (-1.0, 0.7)]),
    "star": _polygon(star_vertices(5, 0.42)),
    "cross": _polygon(_mirrored([(0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3), (0.3, 1)])),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.74) - 0.26,
    "heart": _polygon(heart_vertices()),
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 1.0, 0.8 - np.hypot(x - 0.55, y)),
    "arrow": _polygon([(0, -1.1), *_mirrored([(0.85, -0.1), (0.32, -0.1), (0.32, 1.0)])]),
    "hourglass": _polygon(_mirrored([(0.8, -1.0), (0.12, 0.0), (0.8, 1.0)])),
}
