# SPDX-License-Identifier: Apache-2.0
"""Base of all models: initialisation, loading, freezing, compute kernels on and off."""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging

from .. import kernels
from ..hub.push import HubMixin

logger = logging.get_logger(__name__)


@dataclass
class LoadingRequest:
    """Arguments of a `from_pretrained`, after a model class has found where its weights are.

    Attributes:
        name: Folder, or repository of the Hub, whose weights are loaded; None where they are in memory.
        config: Configuration of the model, or None for the one that is saved with the weights.
        options: Other keyword arguments of `PreTrainedModel.from_pretrained`.
        role: Relation of `name` to the requested model, for messages; "" if it is the model itself.
        adapter: Content of a task adapter that is added once the weights are loaded, or None.
        adapter_name: Folder or repository of the adapter.
    """

    name: str | os.PathLike | None
    config: PreTrainedConfig | str | os.PathLike | None = None
    options: dict[str, Any] = field(default_factory=dict)
    role: str = ""
    adapter: Any = None
    adapter_name: str | os.PathLike | None = None


class CvisPreTrainedModel(HubMixin, PreTrainedModel):
    """Base class of the frame detector and of every video model.

    Initialisation: Linear layers as PyTorch does, convolutions Kaiming-uniform (a=1, fan-in) with zero bias,
    embeddings N(0, 1), norms one and zero. A layer that differs has a method `initialize_parameters()` built on
    `transformers.initialization`, whose functions leave loaded weights alone; it runs after those of its children.

    Attributes:
        untrained_parts (`tuple[str, ...]`): Parts of the model for which `from_pretrained` found no weights; they hold
            random values.
    """

    base_model_prefix = "model"
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    untrained_parts: tuple[str, ...] = ()

    # Freezing

    def frozen_modules(self) -> Iterable[str]:
        """Return the modules and parameters that do not train, by their paths in the model; "" is the whole model.

        A path that does not exist is ignored. Batch norms whose parameters are all frozen keep their statistics.
        """
        return ()

    def evaluated_modules(self) -> Iterable[str]:
        """Return the modules, by their paths, that stay in evaluation mode while the model trains."""
        return ()

    def post_init(self) -> None:
        """Initialise weights and freeze what does not train; called at the end of every `__init__`."""
        super().post_init()
        self._freeze()

    def train(self, mode: bool = True) -> "CvisPreTrainedModel":
        """Set training or evaluation mode; frozen batch norms and `evaluated_modules` stay in evaluation mode."""
        super().train(mode)
        if mode:
            modules = dict(self.named_modules())
            for path in self.evaluated_modules():
                if path in modules:
                    modules[path].eval()
            for module in modules.values():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None:
                    module.training &= module.weight.requires_grad
        return self

    def _freeze(self) -> None:
        """Freeze the parameters that `frozen_modules` names, and let all others train."""
        frozen = list(self.frozen_modules())
        names, prefixes = set(frozen), tuple(f"{path}." for path in frozen if path)
        for name, parameter in self.named_parameters():
            if parameter.is_floating_point():  # quantised parameters cannot train
                parameter.requires_grad_(not ("" in names or name in names or name.startswith(prefixes)))

    # Initialisation

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.in_features)
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=1)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        else:
            super()._init_weights(module)
        if hasattr(module, "initialize_parameters"):
            module.initialize_parameters()

    def _initialize_weights(self, module: nn.Module, *args: Any) -> None:
        # For models outside transformers the library skips a module without tensors of its own, and with it
        # `initialize_parameters()` of a layer made of other layers. Here no module is skipped: `transformers.
        # initialization` leaves loaded tensors alone.
        super()._initialize_weights(module)

    # Loading

    @classmethod
    def _adapt_config(cls, config: PreTrainedConfig) -> PreTrainedConfig:
        """Convert a configuration of transformers to one of this system."""
        return config

    @classmethod
    def _from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> "CvisPreTrainedModel":
        return super()._from_config(cls._adapt_config(config), **kwargs)

    @classmethod
    def _resolve_loading(cls, request: LoadingRequest) -> LoadingRequest:
        """Find the weights of a model; a task adapter points to its base."""
        return request

    def _after_loading(self, request: LoadingRequest) -> None:
        """Complete a model whose weights have just been loaded."""
        self._freeze()  # loaded parameters replace those of the new model, and would all train

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: Any,
        config: PreTrainedConfig | str | os.PathLike | None = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a model as in transformers. Mask2Former checkpoints load into the frame detector as they are.

        One warning names the parts of the model for which the checkpoint has no weights.

        Args:
            pretrained_model_name_or_path: Folder, or repository of the Hub; None if `state_dict` is given.
            model_args: Positional arguments of the model class after `config`.
            config: Configuration to use instead of the saved one.
            ignore_mismatched_sizes: Start weights of another shape than the model's from random values.
            output_loading_info: Also return transformers' report about the weights.
            kwargs: Other arguments of `PreTrainedModel.from_pretrained`, such as `revision`, and fields of the
                configuration.

        Returns:
            The model in evaluation mode; with `output_loading_info` a tuple of the model and a dictionary.

        Raises:
            OSError: The checkpoint cannot be found, or its files are corrupt.
            ValueError: The checkpoint holds a weight of another shape, for example a class head for another number of
                classes, or belongs to a system that cannot start this one.
        """
        if isinstance(config, PreTrainedConfig):
            config = cls._adapt_config(config)
        request = cls._resolve_loading(LoadingRequest(pretrained_model_name_or_path, config, kwargs))
        try:
            model, loading_info = super().from_pretrained(
                request.name,
                *model_args,
                config=request.config,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **request.options,
            )
        except (OSError, SafetensorError) as error:
            raise _explained(error, request) from error
        model._check_loaded(request.name, loading_info, ignore_mismatched_sizes)
        model._after_loading(request)
        return (model, loading_info) if output_loading_info else model

    def _check_loaded(self, name: str, loading_info: dict[str, Any], accept_mismatch: bool) -> None:
        """Refuse weights of another shape unless they are accepted, and note the parts that stay random."""
        mismatched = sorted(loading_info["mismatched_keys"])
        if mismatched and not accept_mismatch:
            listing = "; ".join(
                f"{weight}: checkpoint {tuple(saved)}, model {tuple(built)}" for weight, saved, built in mismatched
            )
            raise ValueError(
                f"{name} does not fit this {type(self).__name__} with {self.config.num_labels} classes. Weights of "
                f"another shape: {listing}. Class heads have one row per class and one for no-object: keep the "
                "checkpoint's classes, or pass `ignore_mismatched_sizes=True` to start these weights at random."
            )
        missing = {*loading_info["missing_keys"], *(weight for weight, *_ in mismatched)}
        self.untrained_parts = tuple(_parts_made_of(self, missing))
        if self.untrained_parts:
            logger.warning(
                f"{name} has no weights for {', '.join(self.untrained_parts)} of this {type(self).__name__}: they hold "
                "random values. Train the model before you use it."
            )

    def check_trained(self) -> None:
        """Raise a ValueError if `from_pretrained` left parts of the model random."""
        if self.untrained_parts:
            raise ValueError(
                f"This {type(self).__name__} cannot be used for inference: {', '.join(self.untrained_parts)} hold "
                f"random values, because {self.name_or_path} has no weights for them. Train the model first; if you "
                "have trained it since you loaded it, save it and load the saved model."
            )

    def set_use_kernels(
        self,
        use_kernels: bool = True,
        kernel_config: None = None,
        mode: None = None,
        *,
        strict: bool | None = None,
        mapping: dict | None = None,
    ) -> None:
        """Run the layers that have a kernel on the Hub with it, or return them to the PyTorch path.

        Kernels follow the model: to another device with `.to()` and similar methods, and between inference and training
        with `.train()` and `.eval()`.

        Args:
            use_kernels: Whether to use kernels. False returns every layer to its PyTorch path.
            kernel_config: Must stay None; part of transformers' signature, which passes it by position.
            mode: Must stay None; part of transformers' signature.
            strict: Raise if a kernel cannot be loaded, instead of one warning and the PyTorch path. None keeps the
                choice of the last call (at first False).
            mapping: Kernel mapping in the format of `kernels.use_kernel_mapping`. None keeps that of the last call (at
                first the default one).

        Raises:
            ValueError: `kernel_config` or `mode` is given.
        """
        if kernel_config is not None or mode is not None:
            raise ValueError(
                f"{type(self).__name__} chooses its kernels itself: pass `mapping` instead of `kernel_config`, and "
                "switch the mode with `.train()` or `.eval()`."
            )
        if strict is not None:
            self._kernels_strict = strict
        if mapping is not None:
            self._kernels_mapping = mapping
        if use_kernels:
            kernels.use_kernels(
                self, strict=getattr(self, "_kernels_strict", False), mapping=getattr(self, "_kernels_mapping", None)
            )
        elif self.use_kernels:
            kernels.disable_kernels(self)
        self._use_kernels = bool(use_kernels)

    def set_attn_implementation(self, attn_implementation: str | dict, *args: Any, **kwargs: Any) -> None:
        """Choose the implementation of attention, like transformers, but leave the backbone as it is.

        Args:
            attn_implementation: "sdpa", "eager" or the name of a function that was registered with
                `transformers.AttentionInterface`. A dict may name one for each part of the configuration, including the
                backbone.
            args: Other positional arguments of transformers' method.
            kwargs: Other arguments of transformers' method.

        Raises:
            ValueError: The implementation is unknown.
        """
        if isinstance(attn_implementation, str):
            attn_implementation = _without_backbone(self.config, attn_implementation)
        super().set_attn_implementation(attn_implementation, *args, **kwargs)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # The library looks for its registry in the file of the class; here `layers.attention` uses the registry.
        return True

    def get_input_embeddings(self) -> nn.Module:
        """Raise an error like Mask2Former: frames are not embedded by a table.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"{type(self).__name__} reads pixels and has no input embeddings. If gradients have to reach the input, "
            f"call `.requires_grad_()` of `{self.main_input_name}`."
        )

    def _apply(self, *args: Any, **kwargs: Any) -> "CvisPreTrainedModel":
        device_type = self.device.type
        super()._apply(*args, **kwargs)  # `.to()`, `.cuda()` and all other methods that move a model call this one
        if self.use_kernels and self.device.type != device_type:
            self.set_use_kernels()
        return self

    def kernel_report(self) -> dict[str, str]:
        """Report for each layer that can run on a kernel, by its path in the model, whether it does."""
        return kernels.kernel_report(self)


def _explained(error: Exception, request: LoadingRequest) -> Exception:
    """Return an OSError that names the files that cannot be read, or `error` itself if it is clear enough."""
    if isinstance(error, SafetensorError):
        revision = request.options.get("revision")
        error = OSError(
            f"The weights of {request.name}{f' (revision {revision})' if revision else ''} are corrupt or incomplete "
            f"({error}). Copy the file again, or pass `force_download=True` for a model of the Hub."
        )
    if not request.role:
        return error
    return OSError(
        f"{request.role}, {request.name}, cannot be loaded: {error} If it has moved, pass its folder or repository as "
        "`base`."
    )


def _without_backbone(config: PreTrainedConfig, implementation: str) -> dict:
    """Return an attention implementation for each part of a configuration except the backbone."""
    parts = {name: getattr(config, name) for name in config.sub_configs if name != "backbone_config"}
    return {"": implementation, **{name: _without_backbone(part, implementation) for name, part in parts.items()}}


def _parts_made_of(model: nn.Module, names: set[str]) -> list[str]:
    """Return the outermost modules, and single parameters, whose parameters are all in `names`."""
    parameters = [name for name, _ in model.named_parameters()]
    outside = [name for name in parameters if name not in names]
    parts: list[str] = []
    for name in parameters:
        if name in names and not any(name == part or name.startswith(f"{part}.") for part in parts):
            path = name.split(".")
            candidates = [".".join(path[:depth]) for depth in range(1, len(path) + 1)]
            parts.append(
                next(part for part in candidates if not any(other.startswith(f"{part}.") for other in outside))
            )
    return parts
