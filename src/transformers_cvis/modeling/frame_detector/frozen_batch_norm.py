# SPDX-License-Identifier: Apache-2.0
"""Batch norms with constant statistics, scale and shift."""

import torch
from torch import nn

from ...kernels import pointwise_convolution
from ...precision import at_least_float32_dtype


class FrozenBatchNorm2d(nn.Module):
    """Batch norm that applies its loaded statistics in training and inference, and does not train.

    Holds the tensors of `nn.BatchNorm2d` under the same names, as buffers.

    Args:
        norm: the batch norm to replace; its tensors are shared.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        for name, tensor in norm.state_dict().items():
            self.register_buffer(name, tensor)

    def scale_and_shift(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the norm as an affine map: its scale and shift, `(channels,)` each, in at least float32."""
        dtype = at_least_float32_dtype(self.running_var.dtype)
        scale = self.weight.to(dtype) * torch.rsqrt(self.running_var.to(dtype) + self.eps)
        return scale, self.bias.to(dtype) - self.running_mean.to(dtype) * scale

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalise a map `(N, channels, height, width)`."""
        return nn.functional.batch_norm(
            hidden_states, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class FrozenConvolutionBlock(nn.Module):
    """Convolution, frozen batch norm and activation, with the norm folded into the weights of the convolution.

    At inference the folded weights are cached until one of the tensors they are computed from changes.

    Args:
        convolution: a convolution without bias.
        normalization: the norm that follows it.
        activation: the activation after the norm, or None.
    """

    def __init__(self, convolution: nn.Conv2d, normalization: FrozenBatchNorm2d, activation: nn.Module | None) -> None:
        super().__init__()
        self.convolution = convolution
        self.normalization = normalization
        self.activation = activation
        self.settings = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
        self.is_pointwise = convolution.kernel_size == (1, 1) and self.settings == ((1, 1), (0, 0), (1, 1), 1)
        # State of the source tensors, folded weight, folded bias.
        self._folded: tuple[tuple, torch.Tensor, torch.Tensor] | None = None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Compute the output map of `(N, input channels, height, width)`."""
        weight, bias = self._folded_weights()
        if self.is_pointwise:
            hidden_states = pointwise_convolution(hidden_states, weight, bias)
        else:
            stride, padding, dilation, groups = self.settings
            hidden_states = nn.functional.conv2d(hidden_states, weight, bias, stride, padding, dilation, groups)
        return hidden_states if self.activation is None else self.activation(hidden_states)

    def _folded_weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        weight, buffers = self.convolution.weight, self.normalization.buffers()
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and weight.requires_grad):
            self._folded = None
            return self._fold()
        sources = (weight, *buffers)
        if any(tensor.is_inference() for tensor in sources):  # they have no version counter
            return self._fold()
        state = tuple((tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in sources)
        if self._folded is None or self._folded[0] != state:
            # A tensor created in inference mode could not be used in a later training step.
            with torch.inference_mode(False), torch.no_grad():
                self._folded = (state, *self._fold())
        return self._folded[1:]

    def _fold(self) -> tuple[torch.Tensor, torch.Tensor]:
        weight = self.convolution.weight
        scale, shift = self.normalization.scale_and_shift()
        folded = (weight * scale[:, None, None, None]).to(weight.dtype)
        return folded.contiguous(memory_format=torch.channels_last), shift.to(weight.dtype)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_folded": None}


def freeze_batch_norms(module: nn.Module) -> None:
    """Freeze every `nn.BatchNorm2d` inside `module`; the names of all parameters and buffers are unchanged.

    Blocks of a convolution, a normalization and optionally an activation, as in transformers' ResNet, then run as one
    convolution.

    Args:
        module: the module to change in place.
    """
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child))
            continue
        freeze_batch_norms(child)
        parts = dict(child.named_children())
        if (
            set(parts) in ({"convolution", "normalization"}, {"convolution", "normalization", "activation"})
            and isinstance(parts["normalization"], FrozenBatchNorm2d)
            and parts["convolution"].bias is None
        ):
            block = FrozenConvolutionBlock(parts["convolution"], parts["normalization"], parts.get("activation"))
            setattr(module, name, block)
