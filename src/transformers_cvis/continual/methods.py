# SPDX-License-Identifier: Apache-2.0
"""Methods that a class-incremental schedule can run: HVPL, CRISP, and the methods that they are compared with."""

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
    """The way in which a method learns task after task.

    Attributes:
        system: model type of the model that it trains, the `system` of a [`Recipe`].
        config: fields of the model's configuration that make it this method. They replace those of a base that another
            method has learnt; `recipe.model.config` of a schedule may change them, for ablations.
        has_prompts: whether a later task trains only prompts and heads of its own, so that a task is an adapter.
            Otherwise every task trains the whole model, whose classes grow.
        learns_all_at_once: whether it learns the classes of all tasks in one, as an upper bound to compare with.
        projects_gradients: whether schedules may set `gradient_projection`.
        distillation: losses of later tasks that compare the model with itself before the task; None for a method
            without.
        make_callbacks: called with the [`Schedule`] once for each run; the callbacks that it returns follow the run
            through all its tasks.
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
    """Make a method known to schedules, which run it with `method: <name>`.

    Args:
        name: name in schedules.
        method: the method.
        exist_ok: whether `name` may replace a method of this name.

    Raises:
        ValueError: if there is a method of this name, and `exist_ok` is False.
    """
    if name in METHODS and not exist_ok:
        raise ValueError(
            f"There is a method {name!r} already: choose another name, or replace it with `exist_ok=True`. Known are "
            f"{', '.join(METHODS)}."
        )
    METHODS[name] = method


def _gradient_correction(schedule: Any) -> Sequence[TrainingCallback]:
    settings = schedule.gradient_projection
    return [] if settings is None else [OrthogonalGradientCorrection(settings)]


# The components of CRISP, which a base that an ablation has learnt may have switched off.
CRISP = {"residual_prompts": True, "lambda_isc": 3.0, "lambda_ic": 3.0, "prompt_init": "directions"}

register_method("hvpl", Method("hvpl", projects_gradients=True, make_callbacks=_gradient_correction))
register_method("crisp", Method("crisp", CRISP))
# Methods that CRISP is compared with, on the model that it extends.
register_method("eclipse", Method("task_clip_detector"))
register_method("finetune", Method("task_clip_detector", has_prompts=False))
register_method("joint", Method("task_clip_detector", has_prompts=False, learns_all_at_once=True))
for _name in ("mib", "comformer", "pod"):
    register_method(
        _name, Method("task_clip_detector", has_prompts=False, distillation=DistillationSettings.preset(_name))
    )

__all__ = ["METHODS", "Method", "register_method"]
