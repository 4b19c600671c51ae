# SPDX-License-Identifier: Apache-2.0
"""Methods of class-incremental learning: HVPL, CRISP and the methods that CRISP is compared with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..training.callbacks import TrainingCallback
from .distilling_model import DistillationSettings
from .gradient_projection import OrthogonalGradientCorrection


def no_callbacks(schedule: Any) -> Sequence[TrainingCallback]:
    """Return no callbacks, for any schedule."""
    return ()


@dataclass(frozen=True)
class Method:
    """Definition of a class-incremental method.

    Attributes:
        system: model type to train, the `system` of a [`Recipe`].
        config: fields of the model configuration that define the method. They replace those of a base that another
            method has trained; `recipe.model.config` of a schedule overrides them, for ablations.
        has_prompts: True if a later task trains only its own prompts and heads, and is saved as an adapter; False if
            every task trains the whole model and extends its class heads.
        learns_all_at_once: True if the classes of all tasks are trained together, as an upper bound.
        projects_gradients: True if schedules may set `gradient_projection`.
        distillation: losses that compare the model with its state before the task, for tasks after the base; None for
            a method without distillation.
        make_callbacks: function from the [`Schedule`] to callbacks, called once per run; the callbacks serve all tasks.
    """

    system: str
    config: dict = field(default_factory=dict)
    has_prompts: bool = True
    learns_all_at_once: bool = False
    projects_gradients: bool = False
    distillation: DistillationSettings | None = None
    make_callbacks: Callable[[Any], Sequence[TrainingCallback]] = no_callbacks


METHODS: dict[str, Method] = {}


def register_method(name: str, method: Method, exist_ok: bool = False) -> None:
    """Register a method, which schedules run with `method: <name>`.

    Args:
        name: name in schedules.
        method: the method.
        exist_ok: replace a registered method of the same name.

    Raises:
        ValueError: if the name is registered and `exist_ok` is False.
    """
    if name in METHODS and not exist_ok:
        raise ValueError(
            f"The method {name!r} is already registered: choose another name, or replace it with `exist_ok=True`. "
            f"Registered are {', '.join(METHODS)}."
        )
    METHODS[name] = method


def _gradient_correction(schedule: Any) -> Sequence[TrainingCallback]:
    settings = schedule.gradient_projection
    return [] if settings is None else [OrthogonalGradientCorrection(settings)]


# The components of CRISP, which an ablation that trained the base may have switched off.
CRISP = {"residual_prompts": True, "lambda_isc": 3.0, "lambda_ic": 3.0, "prompt_init": "directions"}

register_method("hvpl", Method("hvpl", projects_gradients=True, make_callbacks=_gradient_correction))
register_method("crisp", Method("crisp", CRISP))
# Methods that CRISP is compared with, on the model that CRISP extends.
register_method("eclipse", Method("task_clip_detector"))
register_method("finetune", Method("task_clip_detector", has_prompts=False))
register_method("joint", Method("task_clip_detector", has_prompts=False, learns_all_at_once=True))
for _name in ("mib", "comformer", "pod"):
    register_method(
        _name, Method("task_clip_detector", has_prompts=False, distillation=DistillationSettings.preset(_name))
    )

__all__ = ["METHODS", "Method", "register_method"]
