# SPDX-License-Identifier: Apache-2.0
"""Parameter groups and learning-rate schedule."""

import math

from torch import nn

from .recipe import LearningRateScheduleSettings, OptimizerSettings

NORM_LAYERS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
    nn.modules.batchnorm._NormBase,  # batch norm, synchronised batch norm, instance norm
)
# Names of Swin's position tables in transformers.
UNDECAYED_PARAMETERS = ("relative_position_bias_table", "position_embeddings")
BACKBONE_MODULE = "pixel_level_module.encoder"


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict]:
    """Return the AdamW parameter groups with which Mask2Former, VITA and GenVIS are trained.

    The learning rate of the backbone (`pixel_level_module.encoder`) is multiplied by `backbone_factor`. Norm layers,
    `nn.Embedding` weights and the position tables of Swin have no weight decay; all other parameters have it, biases
    included. Frozen parameters are left out, so neither decay nor momentum moves them.

    Args:
        model: the model to train.
        settings: learning rate, backbone factor and weight decay.

    Returns:
        At most four groups `{"params", "parameter_names", "lr", "weight_decay"}`, in a fixed order.

    Raises:
        ValueError: if every parameter of the model is frozen.
    """
    groups: dict[tuple[bool, bool], dict] = {}
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            full_name = f"{module_name}.{name}" if module_name else name
            in_backbone = f".{BACKBONE_MODULE}." in f".{full_name}"
            undecayed = isinstance(module, (*NORM_LAYERS, nn.Embedding)) or name in UNDECAYED_PARAMETERS
            group = groups.setdefault(
                (in_backbone, undecayed),
                {
                    "params": [],
                    "parameter_names": [],
                    "lr": settings.learning_rate * (settings.backbone_factor if in_backbone else 1.0),
                    "weight_decay": 0.0 if undecayed else settings.weight_decay,
                },
            )
            group["params"].append(parameter)
            group["parameter_names"].append(full_name)
    if not groups:
        raise ValueError("The model has no parameters to train: all have requires_grad=False.")
    return [groups[key] for key in sorted(groups)]


def learning_rate_factor(settings: LearningRateScheduleSettings, step: int, max_steps: int) -> float:
    """Return the factor on the learning rate of every group in one optimiser step.

    It depends on the step alone, so a resumed run does not need the state of a scheduler.

    Args:
        settings: the learning-rate schedule.
        step: number of the optimiser step, from 0.
        max_steps: number of optimiser steps of the training.
    """
    warmup = min(1.0, (step + 1) / (settings.warmup_steps + 1))
    if settings.kind == "multi_step":
        return warmup * settings.factor ** sum(step >= milestone for milestone in settings.milestones)
    progress = max(0, step - settings.warmup_steps) / max(1, max_steps - settings.warmup_steps - 1)
    return warmup * (settings.factor + (1 - settings.factor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
