# SPDX-License-Identifier: Apache-2.0
"""Configuration of CRISP."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from ...messages import check_at_least
from ..configuration_base import switch
from ..docstrings import document_config
from ..task_clip_detector.configuration_task_clip_detector import TaskClipDetectorConfig


@document_config
@strict
class CrispConfig(TaskClipDetectorConfig):
    r"""Configuration of [`CrispForVideoInstanceSegmentation`].

    Source: "CRISP: Contrastive Residual Injection and Semantic Prompting for Continual Video Instance Segmentation",
    arXiv:2508.10432.

    Each component can be left out by itself, for ablations. Without all four (`residual_prompts=False`, `lambda_isc=0`,
    `lambda_ic=0`, `prompt_init="mean"`) the model computes the same as a `TaskClipDetector`.

    Args:
        text_encoder (`str`, *optional*):
            CLIP text model that turns class names into prompts in training: a checkpoint of the Hub (published is
            openai/clip-vit-base-patch32), a folder, or "random" for a small one with random weights, which knows no
            words and serves tests and machines without a network. It is not part of the saved model, and inference does
            not need it.
        text_hidden_size (`int`, *optional*, defaults to `512`):
            Width of the token embeddings of the text encoder, and of the learnable class tokens.
        residual_prompts (`bool`, *optional*, defaults to `True`):
            Whether, in training, the prompt of the best matching class is added to the values of self-attention (ARSP).
        matching (`"cosine"` or `"dot"`, *optional*, defaults to `"cosine"`):
            Similarity by which a query is matched to the prompt of a class. Released code uses the cosine. Equation 1
            of the article divides by one norm only, which leaves the dot product.
        lambda_isc (`float`, *optional*, defaults to `3.0`):
            Weight of the ISC loss, which contrasts the matched prompt of a query with the others; 0 leaves it out.
        isc_similarity (`"dot"` or `"cosine"`, *optional*, defaults to `"dot"`):
            Similarity in the ISC loss. The weight is tuned for dot products, as in released code; the article uses
            cosines.
        lambda_ic (`float`, *optional*, defaults to `3.0`):
            Weight of the IC loss, which keeps the correlation of queries as it is in the base; 0 leaves it out.
        apply_at_base (`bool`, *optional*, defaults to `True`):
            Whether the base is also trained with residual prompts, ISC and IC loss. The released scripts train it
            without.
        prompt_init (`"directions"`, `"loadings"`, `"released"` or `"mean"`, *optional*, defaults to `"directions"`):
            Start values of the prompts of a new task: principal directions of all older queries, see `principal_rows`,
            or their mean, as in ECLIPSE. "released" reproduces the rows of the released code, which turn their sign.
        deep_supervision (`"all"` or `"released"`, *optional*, defaults to `"all"`):
            Predictions that later tasks train: those of every layer; or the first and the last, since released code
            appends the others outside its loop.

    Example:
    ```python
    >>> from transformers_cvis import CrispConfig

    >>> config = CrispConfig(id2label={0: "person", 1: "dog"}, behaviour="paper")
    >>> config.matching, config.num_prompts
    ('dot', 'classes')

    ```
    """

    model_type = "crisp"

    text_encoder: str | None = None
    text_hidden_size: int = 512
    residual_prompts: bool = True
    matching: Literal["cosine", "dot"] | None = switch(
        "cosine",
        paper="dot",
        released="cosine",
        reason="Equation 1 of the paper divides by one norm only, which leaves the dot product.",
    )
    lambda_isc: float | int = 3.0
    isc_similarity: Literal["dot", "cosine"] | None = switch(
        "dot",
        paper="cosine",
        released="dot",
        reason="The paper contrasts cosines; the weight of the ISC loss is tuned for dot products.",
    )
    lambda_ic: float | int = 3.0
    apply_at_base: bool | None = switch(
        True,
        paper=True,
        released=False,
        reason="The base is trained with residual prompts, ISC and IC loss; released scripts train it without.",
    )
    prompt_init: Literal["directions", "loadings", "released", "mean"] | None = switch(
        "directions",
        paper="loadings",
        released="released",
        reason="Prompts start from principal directions; the paper scales them, released code turns their signs.",
    )
    deep_supervision: Literal["all", "released"] | None = switch(
        "all",
        paper="all",
        released="released",
        reason="Later tasks train the predictions of all layers; released code trains the first and the last.",
    )

    @property
    def uses_class_names(self) -> bool:
        """Whether training builds prompts from class names."""
        return self.residual_prompts or self.lambda_isc > 0

    def check_num_prompts(self, num_prompts: int) -> None:
        """Check that the IC loss can compare the prompts of a new task with as many queries of the base.

        Raises:
            ValueError: There are more prompts than queries of the base.
        """
        if self.lambda_ic > 0 and num_prompts > self.num_queries:
            raise ValueError(
                f"The IC loss compares the prompts with as many queries of the base: {num_prompts} prompts are too "
                f"many for {self.num_queries} queries. Use fewer prompts, or set `config.lambda_ic` to 0."
            )

    def validate_architecture(self) -> None:
        """Check the sizes and loss weights of CRISP, and the fields of the clip detector with tasks.

        Raises:
            ValueError: A field has an unsupported value.
        """
        super().validate_architecture()
        check_at_least("text_hidden_size", self.text_hidden_size, 1)
        check_at_least("lambda_isc", self.lambda_isc, 0)
        check_at_least("lambda_ic", self.lambda_ic, 0)


__all__ = ["CrispConfig"]
