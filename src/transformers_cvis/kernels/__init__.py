"""Compute kernels behind `nn.Module` layers; knows no model."""

from .deformable_attention import MultiScaleDeformableAttention
from .hub_kernels import KERNEL_MAPPING, disable_kernels, kernel_report, use_kernels

__all__ = ["KERNEL_MAPPING", "MultiScaleDeformableAttention", "disable_kernels", "kernel_report", "use_kernels"]
