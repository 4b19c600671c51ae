# SPDX-License-Identifier: Apache-2.0
"""Switch Hub kernels on and off for the layers decorated with `use_kernel_forward_from_hub`."""

from typing import Any

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
    """Let the decorated layers of a model run their Hub kernels.

    If a kernel cannot be loaded, all layers keep their PyTorch forward. The choice of the kernels depends on the
    model's device, and on `model.training` because training needs a backward pass: call this again when either has
    changed. The models of this package do so themselves.

    Args:
        model: model whose layers are changed in place.
        strict: raise the error that prevents a kernel from loading, instead of one warning.
        mapping: layer name -> device type -> repository, in the form of `kernels.use_kernel_mapping`. Layers that it
            does not name keep their forward. None uses `KERNEL_MAPPING`.

    Raises:
        Exception: with `strict=True`, the error of the `kernels` package or of the Hub client: the device type has no
            kernel, the repository is missing, its publisher is not trusted, it is not cached and the Hub cannot be
            reached, or it has no build for this version of torch.

    Example:
    ```python
    >>> from transformers_cvis.kernels import MultiScaleDeformableAttention, kernel_report, use_kernels

    >>> layer = MultiScaleDeformableAttention()
    >>> use_kernels(layer, mapping={})  # names no layer
    >>> kernel_report(layer)
    {'': 'PyTorch'}

    ```
    """
    mapping = KERNEL_MAPPING if mapping is None else mapping
    device = _device_type(model)
    mode = Mode.TRAINING if model.training else Mode.INFERENCE
    layers = [layer for layer in _kernel_layers(model).values() if _kernel_name(layer) in mapping]
    disable_kernels(model)
    try:
        with use_kernel_mapping(mapping, inherit_mapping=False):
            for layer in layers:
                kernelize(layer, mode=mode, device=device, use_fallback=False)
    # The kernels package and the Hub client raise a dozen unrelated types, which all mean that no kernel can be loaded.
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
            layer.kernel_path = f"Hub kernel {mapping[_kernel_name(layer)][device]}"


def disable_kernels(model: nn.Module) -> None:
    """Switch every decorated layer of a model back to its PyTorch forward.

    Args:
        model: model whose layers are changed in place.
    """
    for layer in _kernel_layers(model).values():
        layer.__dict__.pop("forward", None)
        layer.__dict__.pop("kernel_path", None)


def kernel_report(model: nn.Module) -> dict[str, str]:
    """Report the implementation that each decorated layer runs.

    Args:
        model: model with decorated layers.

    Returns:
        Module path -> "PyTorch", followed by the reason in brackets if a Hub kernel could not be loaded, or the name
        of the Hub kernel.
    """
    return {path: getattr(layer, "kernel_path", REFERENCE_PATH) for path, layer in _kernel_layers(model).items()}


def _kernel_layers(model: nn.Module) -> dict[str, Any]:
    return {path: module for path, module in model.named_modules() if hasattr(type(module), "kernel_layer_name")}


def _kernel_name(layer: Any) -> str:
    return type(layer).kernel_layer_name


def _device_type(model: nn.Module) -> str:
    parameter = next(model.parameters(), None)
    device = "cpu" if parameter is None else parameter.device.type
    return "rocm" if device == "cuda" and torch.version.hip is not None else device
