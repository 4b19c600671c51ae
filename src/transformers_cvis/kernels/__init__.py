"""Compute kernels behind `nn.Module` layers; knows no model."""

from .deformable_attention import MultiScaleDeformableAttention
from .hub_kernels import KERNEL_MAPPING, disable_kernels, kernel_report, use_kernels
from .linear import Linear, linear

__all__ = [
    "KERNEL_MAPPING",
    "Linear",
    "MultiScaleDeformableAttention",
    "disable_kernels",
    "kernel_report",
    "linear",
    "use_kernels",
]
