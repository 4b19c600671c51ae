"""Configuration of CRISP."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from ..clip_detector.configuration_clip_detector import ClipDetectorConfig
from ..tasks.learning import check_tasks

# Fields with which CRISP is video ECLIPSE, which it builds on: prompts and heads of later tasks alone.
ECLIPSE = {"residual_prompts": False, "lambda_isc": 0.0, "lambda_ic": 0.0, "prompt_init": "mean"}


@strict
class CrispConfig(ClipDetectorConfig):
    r"""
    Configuration of [`CrispForVideoInstanceSegmentation`] ("CRISP: Contrastive Residual Injection and Semantic
    Prompting for Continual Video Instance Segmentation", arXiv:2508.10432). Fields as in `ClipDetectorConfig`, and the
    following. Each component can be left out by itself, for ablations; without all four it is video ECLIPSE
    (`transformers_cvis.modeling.crisp.ECLIPSE`).

    task_class_counts (`list[int]`, *optional*):
        Classes of each task, the base first; `id2label` has them in this order. One task of all classes by default.
    task_prompt_counts (`list[int]`, *optional*):
        Prompts of each task after the base; 0 for each of them in a model that learns by all its weights.
    num_prompts (`int` or `"classes"`, defaults to 10):
        Prompts of a new task where `add_task` is not told otherwise; "classes" is one for each of its classes, as in
        the article's algorithm. Released code has 10.
    calibration_deltas (`list[float]`, defaults to `[0.5, 0.6]`):
        Of each task, see `calibrate_class_logits`; cut to the number of tasks or continued with the last one.
    deep_class_head (`bool`, defaults to `True`):
        Class heads of three layers instead of one.
    text_encoder (`str`, *optional*):
        Which CLIP text model turns class names into prompts in training: a checkpoint of the Hub (published is
        openai/clip-vit-base-patch32), a folder, or "random" for a small one with random weights, which knows of no
        word; it serves tests and machines without a network. It is not part of the saved model, and inference needs
        none.
    text_hidden_size (`int`, defaults to 512):
        Width of the token embeddings of the text encoder, which is that of the learnable class tokens.
    residual_prompts (`bool`, defaults to `True`):
        Whether, in training, the prompt of the best matching class is added to the values of self-attention (ARSP).
    matching (`"cosine"` or `"dot"`, defaults to `"cosine"`):
        By which similarity a query is matched to the prompt of a class. Cosine is that of released code; with the one
        norm that the article's equation 1 divides by, it is the dot product.
    lambda_isc (`float`, defaults to 3):
        Weight of the ISC loss, which contrasts the matched prompt of a query with the others; 0 leaves it out.
    isc_similarity (`"dot"` or `"cosine"`, defaults to `"dot"`):
        Similarity in the ISC loss. The weight is tuned for dot products, as in released code; the article says cosine.
    lambda_ic (`float`, defaults to 3):
        Weight of the IC loss, which keeps the correlation of queries as that of the base's; 0 leaves it out.
    apply_at_base (`bool`, defaults to `True`):
        Train the base with residual prompts, ISC and IC loss, too. The released scripts train it without.
    prompt_init (`"directions"`, `"loadings"`, `"released"` or `"mean"`, defaults to `"directions"`):
        What prompts of a new task start from: principal directions of all older queries, see `principal_rows`, or
        their mean, as in ECLIPSE. "released" reproduces the rows of the released code, which turn their sign.
    deep_supervision (`"all"` or `"released"`, defaults to `"all"`):
        Which predictions are trained at later tasks: those of every layer; or the first and the last, since released
        code appends the others outside of its loop.
    """

    model_type = "crisp"
    starts_from = (*ClipDetectorConfig.starts_from, "mask2former_vis")

    task_class_counts: list[int] | None = None
    task_prompt_counts: list[int] | None = None
    num_prompts: int | Literal["classes"] = 10
    calibration_deltas: list[float | int] | None = None
    deep_class_head: bool = True
    text_encoder: str | None = None
    text_hidden_size: int = 512
    residual_prompts: bool = True
    matching: Literal["cosine", "dot"] = "cosine"
    lambda_isc: float | int = 3.0
    isc_similarity: Literal["dot", "cosine"] = "dot"
    lambda_ic: float | int = 3.0
    apply_at_base: bool = True
    prompt_init: Literal["directions", "loadings", "released", "mean"] = "directions"
    deep_supervision: Literal["all", "released"] = "all"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.share_labels()
        if self.task_prompt_counts is None:
            self.task_prompt_counts = []
        if self.calibration_deltas is None:
            self.calibration_deltas = [0.5, 0.6]

    @property
    def uses_class_names(self) -> bool:
        """Whether training makes prompts from the names of classes."""
        return self.residual_prompts or self.lambda_isc > 0

    def check_num_prompts(self, num_prompts: int) -> None:
        """See whether a new task can have so many prompts.

        Raises:
            ValueError: they are more than the queries of the base, with which the IC loss compares them.
        """
        if self.lambda_ic > 0 and num_prompts > self.num_queries:
            raise ValueError(
                f"The IC loss compares prompts with as many queries of the base, of which there are "
                f"{self.num_queries}: {num_prompts} prompts are too many. Set `config.lambda_ic` to 0, or take fewer."
            )

    def share_labels(self) -> None:
        """As long as there is one task, it has all classes of `id2label`."""
        if len(self.task_class_counts or [0]) == 1:
            self.task_class_counts = [self.num_labels]

    def validate_architecture(self):
        super().validate_architecture()
        if self.task_class_counts is not None:
            check_tasks(self, fewest_prompts=0)
        if self.calibration_deltas is not None and not self.calibration_deltas:
            raise ValueError("`calibration_deltas` must hold at least one number; 0 leaves logits as they are.")
        if self.num_prompts != "classes" and self.num_prompts < 0:
            raise ValueError(f'`num_prompts` must be 0 or more, or "classes", got {self.num_prompts}.')
        if self.text_hidden_size < 1:
            raise ValueError(f"`text_hidden_size` must be at least 1, got {self.text_hidden_size}.")
        for name in ("lambda_isc", "lambda_ic"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` is the weight of a loss and must be 0 or more, got {getattr(self, name)}.")


__all__ = ["ECLIPSE", "CrispConfig"]
