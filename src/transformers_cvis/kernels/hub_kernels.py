# SPDX-License-Identifier: Apache-2.0
"""Kernels of the Hub on and off, for the layers decorated with `use_kernel_forward_from_hub`."""

import torch
from kernels import LayerRepository, Mode, kernelize, use_kernel_mapping
from torch import nn
from transformers.utils import logging

logger = logging.get_logger(__name__)

REFERENCE_PATH = "PyTorch"

KERNEL_MAPPING = {
    "MultiScaleDeformableAttention": {
        "cuda": LayerRepository(
            "kernels-community/deformable-detr", layer_name="MultiScaleDeformableAttention", version=1
        )
    }
}


def use_kernels(model: nn.Module, *, strict: bool = False, mapping: dict | None = None) -> None:
    """Let every decorated layer of `model` run its Hub kernel; what cannot be loaded keeps the PyTorch forward.

    Which kernels there are depends on the model's device, and whether they need a backward on `model.training`: call it
    again when either has changed. Models of this package do so themselves.

    Args:
        strict: raise what hindered the kernel instead of one warning that says so.
        mapping: layer name -> device type -> repository, as `kernels.use_kernel_mapping` takes it; layers whose name is
            not in it are left alone. None for `KERNEL_MAPPING`.

    Raises:
        Exception: with `strict=True`, what the `kernels` package or the Hub client raised: no kernel for this device
            type, missing repository, untrusted publisher, offline and not cached, no build for this torch.
    """
    mapping = KERNEL_MAPPING if mapping is None else mapping
    device = _device_type(model)
    mode = Mode.TRAINING if model.training else Mode.INFERENCE
    layers = [layer for layer in _kernel_layers(model).values() if type(layer).kernel_layer_name in mapping]
    disable_kernels(model)
    try:
        with use_kernel_mapping(mapping, inherit_mapping=False):
            for layer in layers:
                kernelize(layer, mode=mode, device=device, use_fallback=False)
    # The kernels package and the Hub client raise a dozen unrelated types here, and each means the same: no kernel.
    except Exception as error:
        disable_kernels(model)
        if strict:
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        for layer in layers:
            layer.kernel_path = f"{REFERENCE_PATH} ({reason})"
        logger.warning_once(
            f"No Hub kernel is used on {device}, the PyTorch path runs instead. {reason} "
            "(`strict=True` raises this; `kernel_report()` lists the path of each layer. A model that is moved to "
            "another device tries again.)"
        )
        return
    for layer in layers:
        if layer.forward.__func__ is not type(layer).forward:
            layer.kernel_path = f"Hub kernel {mapping[type(layer).kernel_layer_name][device]}"


def disable_kernels(model: nn.Module) -> None:
    """Return every decorated layer to its PyTorch forward."""
    for layer in _kernel_layers(model).values():
        layer.__dict__.pop("forward", None)
        layer.__dict__.pop("kernel_path", None)


def kernel_report(model: nn.Module) -> dict[str, str]:
    """Path of every decorated layer -> what it runs: "PyTorch", with the reason after a failure, or the kernel."""
    return {path: getattr(layer, "kernel_path", REFERENCE_PATH) for path, layer in _kernel_layers(model).items()}


def _kernel_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {path: module for path, module in model.named_modules() if hasattr(type(module), "kernel_layer_name")}


def _device_type(model: nn.Module) -> str:
    parameter = next(model.parameters(), None)
    device = "cpu" if parameter is None else parameter.device.type
    return "rocm" if device == "cuda" and torch.version.hip is not None else device
