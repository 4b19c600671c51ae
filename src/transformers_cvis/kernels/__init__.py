# SPDX-License-Identifier: Apache-2.0
"""Layers and functions with fast kernels: attention, tree scan, linear layers. They depend on no model."""

from .batch_invariance import BatchInvariance, batch_invariant_linear
from .deformable_attention import MultiScaleDeformableAttention
from .hub_kernels import KERNEL_MAPPING, disable_kernels, kernel_report, use_kernels
from .linear import Linear, PointwiseConvolution, linear, pointwise_convolution
from .tree_scan import SpanningTrees, TreeScan, grid_edge_costs, minimum_spanning_trees

__all__ = [
    "KERNEL_MAPPING",
    "BatchInvariance",
    "Linear",
    "MultiScaleDeformableAttention",
    "PointwiseConvolution",
    "SpanningTrees",
    "TreeScan",
    "batch_invariant_linear",
    "disable_kernels",
    "grid_edge_costs",
    "kernel_report",
    "linear",
    "minimum_spanning_trees",
    "pointwise_convolution",
    "use_kernels",
]
