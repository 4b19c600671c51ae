"""Table of parameter names of CRISP: Mask2Former-VIS's, with prompts, class heads of tasks and class tokens."""

from ..rules import Ignore, Rename, Rule, frame_detector_rules
from .hvpl import task_query_rules

_PREDICTOR = r"sem_seg_head\.predictor"


def crisp_rules() -> list[Rule]:
    """CRISP after any task to `CrispForVideoInstanceSegmentation`."""
    return [
        *task_query_rules(_PREDICTOR),
        Rename(rf"{_PREDICTOR}\.sem_prompter\.learnable_prompts\.(\d+)\.weight", r"class_tokens.\1.weight"),
        Ignore(
            rf"{_PREDICTOR}\.sem_prompter\..+",
            "a copy of CLIP's frozen text model; training takes that of `config.text_encoder`, inference needs none",
        ),
        *frame_detector_rules(),
    ]
