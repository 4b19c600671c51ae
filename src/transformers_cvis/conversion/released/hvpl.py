"""Table of parameter names of HVPL: VITA's, with groups of prompts, class heads of tasks and the context encoder."""

from ..rules import Rename, Rule, prefixed
from .vita_genvis import vita_rules


def task_query_rules(source: str) -> list[Rule]:
    """Prompts of later tasks and class heads, at the level whose names start with `source`."""
    decoder_layers = rf"{source}\.transformer_cross_attention_layers\.(\d+)\."
    return [
        Rename(rf"{source}\.prompt_feat\.(\d+)\.weight", r"task_queries.\1.features.weight"),
        Rename(rf"{source}\.prompt_embed\.(\d+)\.(\d+)\.weight", r"task_queries.\1.positions.\2.weight"),
        # without PROMPT_DEEP all layers share one
        Rename(rf"{source}\.prompt_embed\.(\d+)\.weight", r"task_queries.\1.positions.*.weight", copies=decoder_layers),
        Rename(rf"{source}\.prompt_fq_pos\.(\d+)\.weight", r"task_queries.\1.token_positions.weight"),
        Rename(rf"{source}\.prompt_mask_embed\.(\d+)\.layers\.(\d+)\.(\w+)", r"task_queries.\1.mask_embedder.\2.0.\3"),
        Rename(rf"{source}\.class_embed\.cls\.(\d+)\.layers\.(\d+)\.(\w+)", r"class_predictor.heads.\1.\2.0.\3"),
        Rename(rf"{source}\.class_embed\.cls\.(\d+)\.(weight|bias)", r"class_predictor.heads.\1.\2"),
    ]


_LAYER = r"vita_module\.enc_mamba\.(\d+)"
_SCAN = rf"{_LAYER}\.TreeSSM"

CONTEXT_ENCODER: list[Rule] = [
    Rename(rf"{_LAYER}\.norm1\.0\.(\w+)", r"\1.state_space_layer_norm.\2"),
    Rename(rf"{_LAYER}\.norm2\.0\.(\w+)", r"\1.final_layer_norm.\2"),
    Rename(rf"{_LAYER}\.mlp\.(fc[12])\.(\w+)", r"\1.\2.\3"),
    Rename(rf"{_SCAN}\.(in_proj|conv2d|out_proj)\.(\w+)", r"\1.state_space.\2.\3"),
    # the projections of the scan have a first axis of length one: the number of scans
    Rename(rf"{_SCAN}\.x_proj_weight", r"\1.state_space.x_proj.weight", squeeze=True),
    Rename(rf"{_SCAN}\.dt_projs_(weight|bias)", r"\1.state_space.dt_proj.\2", squeeze=True),
    Rename(rf"{_SCAN}\.A_logs", r"\1.state_space.A_log"),
    Rename(rf"{_SCAN}\.Ds", r"\1.state_space.D"),
    Rename(rf"{_SCAN}\.h_norm\.(\w+)", r"\1.state_space.state_norm.\2"),
    Rename(rf"{_SCAN}\.out_norm\.(\w+)", r"\1.state_space.output_norm.\2"),
]


def hvpl_rules() -> list[Rule]:
    """HVPL after any task to `HvplForVideoInstanceSegmentation`."""
    return [
        *prefixed(task_query_rules(r"sem_seg_head\.predictor"), "detector."),
        *prefixed(task_query_rules("vita_module"), "video_head."),
        *prefixed(CONTEXT_ENCODER, "video_head.encoder.layers."),
        *vita_rules(),
    ]
