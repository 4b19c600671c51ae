# SPDX-License-Identifier: Apache-2.0
"""Outputs of the models. Letters of shapes as in `modeling/__init__.py`."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from .docstrings import document_output


class LayerPrediction(NamedTuple):
    """Predictions of one decoder layer. The logits of a mask are the product of its embedding with the mask features.

    Leading axes: `(N,)` images at the frame stage, `(L, B)` frame decoder layers and videos at the video stage.
    """

    class_logits: torch.Tensor
    """`(..., Q, K + 1)`, no-object last."""
    mask_embeddings: torch.Tensor
    """`(..., Q, C)`."""


@document_output
@dataclass
class FrameDetectorOutput(ModelOutput):
    r"""Output of [`FrameDetector`], for N images.

    Args:
        loss (`torch.Tensor` of shape `(1,)`, *optional*):
            Sum of `loss_dict`; returned with `labels`.
        loss_dict (`dict[str, torch.Tensor]`, *optional*):
            Weighted losses, one entry per kind and prediction.
        class_queries_logits (`torch.Tensor` of shape `(N, Q, K + 1)`, *optional*):
            Class logits of the last layer, no-object last.
        masks_queries_logits (`torch.Tensor` of shape `(N, Q, h, w)`, *optional*):
            Mask logits of the last layer, positive inside a mask.
        frame_queries (`torch.Tensor` of shape `(num_query_layers, N, Q, C)`):
            Queries of the last decoder layers after the decoder's norm, oldest layer first.
        fpn_features (`torch.Tensor` of shape `(N, C, h, w)`):
            Input of the mask projection.
        mask_features (`torch.Tensor` of shape `(N, C, h, w)`, *optional*):
            Embeddings of pixels; their product with a mask embedding gives the logits of a mask.
        predictions (`tuple[LayerPrediction, ...]`, *optional*):
            Class logits and mask embeddings of the learned queries and of every decoder layer, oldest first; returned
            in training and with `output_predictions=True`.
        hidden_states (`tuple[torch.Tensor, ...]`, *optional*):
            Learned queries and those of every decoder layer, `(N, Q, C)` each, after the decoder's norm, oldest first;
            returned with `output_hidden_states=True`.
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    class_queries_logits: torch.Tensor | None = None
    masks_queries_logits: torch.Tensor | None = None
    frame_queries: torch.Tensor | None = None
    fpn_features: torch.Tensor | None = None
    mask_features: torch.Tensor | None = None
    predictions: tuple[LayerPrediction, ...] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


@document_output
@dataclass
class VideoInstanceSegmentationOutput(ModelOutput):
    r"""Output of every video model, for one clip of T frames.

    Args:
        loss (`torch.Tensor` of shape `(1,)`, *optional*):
            Sum of `loss_dict`; returned with `labels`.
        loss_dict (`dict[str, torch.Tensor]`, *optional*):
            Weighted losses, by name.
        class_queries_logits (`torch.Tensor` of shape `(B, Q, K + 1)`):
            Class logits, no-object last.
        masks_queries_logits (`torch.Tensor` of shape `(B, Q, T, h, w)`):
            Mask logits, positive inside a mask.
        state (`Any`, *optional*):
            State to pass with the next clip; None for models that read the whole video at once.
        frame_queries (`torch.Tensor` of shape `(num_query_layers, B, T, F, C)`, *optional*):
            Queries of the frame detector; those of trackers are in the order of the tracks.
        video_queries (`torch.Tensor` of shape `(B, Q, C)`, *optional*):
            Decoded video queries of the last layer.
        mask_embeddings (`torch.Tensor` of shape `(B, Q, C)`, *optional*):
            Mask embeddings of the queries.
        mask_features (`torch.Tensor` of shape `(B, T, C, h, w)`, *optional*):
            Embeddings of pixels; their product with a mask embedding gives the logits of a mask.
        encoded_frame_queries (`torch.Tensor` of shape `(B, T, F, C)`, *optional*):
            Frame queries after the object encoder.
        frame_similarity_embeddings (`torch.Tensor` of shape `(B, T, F, C)`, *optional*):
            Embeddings of frame queries; their products with those of video queries are large for the same object.
        video_similarity_embeddings (`torch.Tensor` of shape `(B, Q, C)`, *optional*):
            Embeddings of video queries, see `frame_similarity_embeddings`.
        hidden_states (`tuple[torch.Tensor, ...]`, *optional*):
            Queries of the layers that the predictions come from, after their norm, oldest layer first; returned at
            inference with `output_hidden_states=True`. They are `(B, Q, C)` for VITA, GenVIS and HVPL (layers of the
            object decoder) and for Mask2Former-VIS and CRISP (learned queries and layers of the clip decoder),
            `(B, T, Q, C)` for MinVIS (learned queries and layers of the frame decoder) and SPVIS (layers of the
            tracker, offline those of the refiner).
        original_sizes (`torch.Tensor` of shape `(B, 2)`, *optional*):
            Height and width of the videos before they were resized, if the model was given them.
        input_sizes (`torch.Tensor` of shape `(B, 2)`, *optional*):
            Height and width of the network input without its padding, if the model was given a `pixel_mask`.
        score_rule (`str`, *optional*):
            Rule by which tracks are scored, "max_times_quality" or "mean_logits"; None with a loss. It is an item like
            the tensors, so that it stays with an output that is pickled, moved, cast or returned as a tuple. Gather
            several outputs as objects (`accelerate.utils.gather_object`), since a string has no shape.
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    class_queries_logits: torch.Tensor | None = None
    masks_queries_logits: torch.Tensor | None = None
    state: Any = None
    frame_queries: torch.Tensor | None = None
    video_queries: torch.Tensor | None = None
    mask_embeddings: torch.Tensor | None = None
    mask_features: torch.Tensor | None = None
    encoded_frame_queries: torch.Tensor | None = None
    frame_similarity_embeddings: torch.Tensor | None = None
    video_similarity_embeddings: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    original_sizes: torch.Tensor | None = None
    input_sizes: torch.Tensor | None = None
    score_rule: str | None = None


def hidden_states_requested(
    config: PreTrainedConfig, output_hidden_states: bool | None, output_attentions: bool | None
) -> bool:
    """Decide whether a model returns `hidden_states`, and refuse attention weights, which no model returns.

    Args:
        config: Configuration of the model; its values replace an argument of None.
        output_hidden_states: Argument of the model's `forward`.
        output_attentions: Argument of the model's `forward`.

    Returns:
        Whether the output has `hidden_states`.

    Raises:
        ValueError: Attention weights are asked for.
    """
    if config.output_attentions if output_attentions is None else output_attentions:
        raise ValueError(
            "`output_attentions=True` is not supported: frames, windows and groups of queries are decoded one after "
            "the other, so no layer has one tensor of attention weights. Leave it out; to look at the weights, "
            "register a function that keeps them with `transformers.AttentionInterface`, and load the model with its "
            "name as `attn_implementation`."
        )
    return bool(config.output_hidden_states if output_hidden_states is None else output_hidden_states)
