# SPDX-License-Identifier: Apache-2.0
"""HVPL checkpoints: VITA's names, with prompts and class heads of tasks, and the context encoder."""

from collections.abc import Mapping
from typing import Any

import torch

from ...modeling.hvpl import HvplConfig, HvplForVideoInstanceSegmentation
from ..rules import Conversion, Rename, Rule, count_indices, prefixed
from .mask2former import infer_frame_detector_config
from .tasks import class_head_sizes, default_labels, task_query_rules
from .vita_genvis import VIDEO_SHORT_SIDES, video_decoder_sizes, vita_rules

# Fields that reproduce the behaviour with which released weights were trained and evaluated. The published numbers need
# all three together.
RELEASED_HVPL = {"scan_axes": "released", "encoder_slices": "joint", "cross_tokens": "released"}


# Names

_CONTEXT_LAYER = r"vita_module\.enc_mamba\.(\d+)"
_TREE_SCAN = rf"{_CONTEXT_LAYER}\.TreeSSM"

CONTEXT_ENCODER: list[Rule] = [
    Rename(rf"{_CONTEXT_LAYER}\.norm1\.0\.(\w+)", r"\1.state_space_layer_norm.\2"),
    Rename(rf"{_CONTEXT_LAYER}\.norm2\.0\.(\w+)", r"\1.final_layer_norm.\2"),
    Rename(rf"{_CONTEXT_LAYER}\.mlp\.(fc[12])\.(\w+)", r"\1.\2.\3"),
    Rename(rf"{_TREE_SCAN}\.(in_proj|conv2d|out_proj)\.(\w+)", r"\1.state_space.\2.\3"),
    # the first axis of the projections is the number of scans, which is one
    Rename(rf"{_TREE_SCAN}\.x_proj_weight", r"\1.state_space.x_proj.weight", squeeze=True),
    Rename(rf"{_TREE_SCAN}\.dt_projs_(weight|bias)", r"\1.state_space.dt_proj.\2", squeeze=True),
    Rename(rf"{_TREE_SCAN}\.A_logs", r"\1.state_space.A_log"),
    Rename(rf"{_TREE_SCAN}\.Ds", r"\1.state_space.D"),
    Rename(rf"{_TREE_SCAN}\.h_norm\.(\w+)", r"\1.state_space.state_norm.\2"),
    Rename(rf"{_TREE_SCAN}\.out_norm\.(\w+)", r"\1.state_space.output_norm.\2"),
]


def hvpl_rules() -> list[Rule]:
    """Return the rules from HVPL after any task to `HvplForVideoInstanceSegmentation`."""
    return [
        *prefixed(task_query_rules(r"sem_seg_head\.predictor"), "detector."),
        *prefixed(task_query_rules("vita_module"), "video_head."),
        *prefixed(CONTEXT_ENCODER, "video_head.encoder.layers."),
        *vita_rules(),
    ]


# Configuration


def infer_hvpl_config(state_dict: Mapping[str, torch.Tensor], **settings: Any) -> HvplConfig:
    """Read the configuration of an HVPL checkpoint from its shapes, and choose the released behaviour.

    Args:
        state_dict: released names to tensors, after any task.
        **settings: fields that take precedence, for example `id2label`, or `calibration_deltas`, which no shape shows.

    Returns:
        The configuration of HVPL with the fields `RELEASED_HVPL`.

    Raises:
        ValueError: the checkpoint has no class heads of tasks.
        KeyError: a tensor that shows a size is missing.
    """
    class_counts, deep = class_head_sizes(state_dict, "vita_module")
    if not class_counts:
        raise ValueError(
            "The checkpoint has no class heads of tasks (`vita_module.class_embed.cls.*`), so it is not HVPL."
        )
    prompts = [f"vita_module.prompt_feat.{task}.weight" for task in range(len(class_counts) - 1)]
    id2label = settings.pop("id2label", default_labels(sum(class_counts)))
    detector_config = infer_frame_detector_config(state_dict, id2label=id2label)
    found = {
        "id2label": id2label,
        "detector_config": detector_config,
        "num_attention_heads": detector_config.num_attention_heads,
        "encoder_layers": count_indices(state_dict, r"vita_module\.enc_mamba\.(\d+)\."),
        **video_decoder_sizes(state_dict),
        "task_class_counts": class_counts,
        "task_prompt_counts": [len(state_dict[name]) for name in prompts],
        "deep_class_head": deep,
    }
    return HvplConfig(**{**found, **RELEASED_HVPL, **settings})


# Entry

HVPL = Conversion(
    rules=hvpl_rules,
    infer_config=infer_hvpl_config,
    model_class=HvplForVideoInstanceSegmentation,
    short_sides=VIDEO_SHORT_SIDES,
    assumed_fields=("calibration_deltas",),
)
