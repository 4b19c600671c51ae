# SPDX-License-Identifier: Apache-2.0
"""CRISP checkpoints: Mask2Former's names, with prompts, class heads and class tokens of tasks.

The fields of CRISP that reproduce released behaviour concern training alone, so a converted model needs none of them.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch

from ...modeling.crisp import CrispConfig, CrispForVideoInstanceSegmentation
from ..rules import Conversion, Ignore, Rename, Rule
from .mask2former import FRAME_SHORT_SIDES, frame_detector_rules, infer_frame_detector_config
from .tasks import class_head_sizes, default_labels, task_query_rules

# Names


def crisp_rules() -> list[Rule]:
    """Return the rules from CRISP after any task to `CrispForVideoInstanceSegmentation`."""
    predictor = r"sem_seg_head\.predictor"
    return [
        *task_query_rules(predictor),
        Rename(rf"{predictor}\.sem_prompter\.learnable_prompts\.(\d+)\.weight", r"class_tokens.\1.weight"),
        Ignore(
            rf"{predictor}\.sem_prompter\..+",
            "a copy of CLIP's frozen text model; training loads `config.text_encoder`, inference needs none",
        ),
        *frame_detector_rules(),
    ]


# Configuration


def infer_crisp_config(state_dict: Mapping[str, torch.Tensor], **settings: Any) -> CrispConfig:
    """Read the configuration of a CRISP checkpoint from its shapes.

    Args:
        state_dict: released names to tensors, after any task.
        **settings: fields that take precedence, for example `id2label`, or `calibration_deltas`, which no shape shows.

    Returns:
        The configuration of CRISP. Without class tokens in the checkpoint, it leaves out the components that need them.

    Raises:
        ValueError: the checkpoint has no class heads of tasks.
        KeyError: a tensor that shows a size is missing.
    """
    predictor = "sem_seg_head.predictor"
    class_counts, deep = class_head_sizes(state_dict, predictor)
    if not class_counts:
        raise ValueError(
            f"The checkpoint has no class heads of tasks (`{predictor}.class_embed.cls.*`), so it is not CRISP."
        )
    prompts = [f"{predictor}.prompt_feat.{task}.weight" for task in range(len(class_counts) - 1)]
    found: dict[str, Any] = {
        "task_class_counts": class_counts,
        "task_prompt_counts": [len(state_dict[name]) if name in state_dict else 0 for name in prompts],
        "deep_class_head": deep,
    }
    class_tokens = f"{predictor}.sem_prompter.learnable_prompts.0.weight"
    if class_tokens in state_dict:
        found["text_hidden_size"] = state_dict[class_tokens].shape[1]
    else:
        found |= {"residual_prompts": False, "lambda_isc": 0.0}
    id2label = settings.pop("id2label", default_labels(sum(class_counts)))
    detector_config = infer_frame_detector_config(state_dict, id2label=id2label)
    return cast(CrispConfig, CrispConfig.from_frame_detector(detector_config, **{**found, **settings}))


# Entry

CRISP = Conversion(
    rules=crisp_rules,
    infer_config=infer_crisp_config,
    model_class=CrispForVideoInstanceSegmentation,
    short_sides=FRAME_SHORT_SIDES,
    assumed_fields=("calibration_deltas",),
)
