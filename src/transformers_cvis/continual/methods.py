"""What a class-incremental schedule can run: HVPL and CRISP, and what they are compared with."""

from dataclasses import dataclass, field

from .distillation import DistillationRecipe


@dataclass(frozen=True)
class Method:
    """How a method learns task after task.

    Attributes:
        system: whose model it trains, a `system` of [`Recipe`].
        config: fields of the model's configuration that make it this method, whatever a base that another method
            learnt says; a schedule may change them, for ablations.
        has_prompts: a later task trains prompts and heads of its own and nothing else, so that a task is an adapter.
            Otherwise every task trains the whole model, whose classes grow.
        learns_all_at_once: there is one task of all classes, to compare with.
        projects_gradients: it has an orthogonal gradient correction.
        distillation: losses of later tasks that look at the model before the task.
    """

    system: str
    config: dict = field(default_factory=dict)
    has_prompts: bool = True
    learns_all_at_once: bool = False
    projects_gradients: bool = False
    distillation: DistillationRecipe | None = None


# The components of CRISP, which a base that was saved by an ablation may have switched off.
CRISP = {"residual_prompts": True, "lambda_isc": 3.0, "lambda_ic": 3.0, "prompt_init": "directions"}

METHODS = {
    "hvpl": Method("hvpl", projects_gradients=True),
    "crisp": Method("crisp", CRISP),
    # Methods that CRISP is compared with, on the model that it extends.
    "eclipse": Method("task_clip_detector"),
    "finetune": Method("task_clip_detector", has_prompts=False),
    "joint": Method("task_clip_detector", has_prompts=False, learns_all_at_once=True),
    **{
        name: Method("task_clip_detector", has_prompts=False, distillation=DistillationRecipe.preset(name))
        for name in ("mib", "comformer", "pod")
    },
}
