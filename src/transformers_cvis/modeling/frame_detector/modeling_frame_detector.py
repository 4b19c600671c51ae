# SPDX-License-Identifier: Apache-2.0
"""Frame detector: Mask2Former, under its own parameter names, as the basis of the video models.

N images, Q queries, C channels, K classes.
"""

from typing import ClassVar

import torch
from torch import nn
from transformers import AutoBackbone, Mask2FormerConfig, PreTrainedConfig
from transformers.utils import can_return_tuple

from ...geometry import SIZE_DIVISOR
from ...kernels import pointwise_convolution
from ..docstrings import document_forward
from ..layers.mask_logits import frame_mask_logits
from ..layers.query_groups import GroupParameters
from ..losses import MaskClassificationLoss
from ..modeling_base import CvisPreTrainedModel
from ..outputs import FrameDetectorOutput, LayerPrediction, hidden_states_requested
from .configuration_frame_detector import FrameDetectorConfig
from .frozen_batch_norm import freeze_batch_norms
from .masked_attention_decoder import TransformerModule
from .pixel_decoder import PixelDecoder


class PixelLevelModule(nn.Module):
    """Backbone and pixel decoder."""

    def __init__(self, config: FrameDetectorConfig) -> None:
        super().__init__()
        self.encoder = AutoBackbone.from_config(config.backbone_config)
        if len(self.encoder.channels) != 4:
            raise ValueError(
                f"The backbone must return four maps (strides 4, 8, 16, 32), got {self.encoder.out_features}. Set "
                "`out_features` in `backbone_config`."
            )
        if config.freeze_batch_norm:
            freeze_batch_norms(self.encoder)
        for module in self.encoder.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = True  # safe: the input is always a new tensor of a convolution or sum
        if hasattr(self.encoder, "swin"):
            self.encoder.swin.layernorm = nn.Identity()  # norms the last hidden state, which is not used
        self.decoder = PixelDecoder(config, self.encoder.channels)

    def forward(self, pixel_values: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return the levels and the fine map of frames `(N, 3, H, W)`, see `PixelDecoder.forward`."""
        return self.decoder(self.extract_features(pixel_values))

    def extract_features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Return the backbone maps of strides 4, 8, 16, 32, in channels-last memory, where convolutions are fastest."""
        maps = self.encoder(pixel_values.contiguous(memory_format=torch.channels_last)).feature_maps
        return [feature_map.contiguous(memory_format=torch.channels_last) for feature_map in maps]


class FrameDetectorModel(nn.Module):
    """Network of the frame detector without its class head, under Mask2Former's parameter names."""

    def __init__(self, config: FrameDetectorConfig) -> None:
        super().__init__()
        self.pixel_level_module = PixelLevelModule(config)
        self.transformer_module = TransformerModule(config)


class FrameDetector(CvisPreTrainedModel):
    """Mask2Former on single frames (Cheng et al., Masked-attention Mask Transformer, CVPR 2022).

    `from_pretrained` loads checkpoints of transformers' `Mask2FormerForUniversalSegmentation`.
    """

    config: FrameDetectorConfig
    config_class = FrameDetectorConfig
    class_predictor: nn.Module
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules: ClassVar[list[str]] = [
        "FrozenConvolutionBlock",
        "PixelDecoderEncoderLayer",
        "MaskedAttentionDecoderLayer",
    ]
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^criterion\.", r"\.swin\.layernorm\."]

    def __init__(self, config: FrameDetectorConfig) -> None:
        super().__init__(config)
        self.model = FrameDetectorModel(config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
        self.criterion = MaskClassificationLoss(config.num_labels, **MaskClassificationLoss.settings_of(config))
        self.post_init()

    @classmethod
    def _adapt_config(cls, config: PreTrainedConfig) -> PreTrainedConfig:
        return cls.config_class.from_frame_detector(config) if type(config) is Mask2FormerConfig else config

    @can_return_tuple
    @document_forward()
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: list[dict[str, torch.Tensor]] | None = None,
        num_query_layers: int = 1,
        output_predictions: bool = False,
        output_mask_features: bool = True,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> FrameDetectorOutput:
        r"""Detect the objects of single frames.

        Args:
            pixel_values (`torch.Tensor` of shape `(N, 3, H, W)`):
                Normalised frames; `H` and `W` are multiples of 32. Padding counts as image.
            labels (`list[dict[str, torch.Tensor]]`, *optional*):
                One dict per frame: `class_labels` `(M,)` long and `masks` `(M, H, W)`. The output then has `loss` and
                `loss_dict`.
            num_query_layers (`int`, *optional*, defaults to `1`):
                Last decoder layers whose queries `frame_queries` holds.
            output_predictions (`bool`, *optional*, defaults to `False`):
                Whether to return `predictions`, and outside training the logits of the last layer.
            output_mask_features (`bool`, *optional*, defaults to `True`):
                Whether to return `mask_features`. False saves their computation where nothing else needs them.
            output_hidden_states (`bool`, *optional*):
                Whether to return `hidden_states`, the queries of all layers.
            output_attentions (`bool`, *optional*):
                Not supported: True raises a ValueError, as no layer has one tensor of attention weights.

        Returns:
            [`FrameDetectorOutput`].

        Raises:
            ValueError: `pixel_values` has the wrong shape or type, `num_query_layers` is out of range, or attention
                weights are asked for.

        Example:
        ```python
        >>> import torch
        >>> from transformers import ResNetConfig
        >>> from transformers_cvis.modeling.frame_detector import FrameDetector, FrameDetectorConfig

        >>> # A small model with random weights; `from_pretrained` loads a trained one.
        >>> backbone = ResNetConfig(
        ...     layer_type="basic", hidden_sizes=[8, 8, 16, 16], out_features=["stage1", "stage2", "stage3", "stage4"]
        ... )
        >>> config = FrameDetectorConfig(
        ...     backbone_config=backbone, feature_size=32, hidden_dim=32, encoder_layers=1, decoder_layers=3,
        ...     num_queries=10,
        ... )
        >>> model = FrameDetector(config).eval()

        >>> frames = torch.randn(2, 3, 64, 96)  # (N, 3, H, W)
        >>> with torch.no_grad():
        ...     output = model(frames, output_predictions=True)
        >>> output.frame_queries.shape, output.masks_queries_logits.shape
        (torch.Size([1, 2, 10, 32]), torch.Size([2, 10, 16, 24]))

        ```
        """
        keeps_layers = hidden_states_requested(self.config, output_hidden_states, output_attentions)
        self._check_inputs(pixel_values, num_query_layers)
        levels, fpn_features = self.model.pixel_level_module(pixel_values.to(self.dtype))
        return self.predict(
            levels, fpn_features, labels, num_query_layers, output_predictions, output_mask_features, keeps_layers
        )

    def predict(
        self,
        levels: list[torch.Tensor],
        fpn_features: torch.Tensor,
        labels: list[dict[str, torch.Tensor]] | None = None,
        num_query_layers: int = 1,
        output_predictions: bool = False,
        output_mask_features: bool = True,
        output_hidden_states: bool = False,
    ) -> FrameDetectorOutput:
        """Predict from the outputs of the pixel decoder.

        Args:
            levels: see `PixelDecoder.forward`.
            fpn_features: the fine map `(N, C, H / 4, W / 4)`.
            labels: see `forward`.
            num_query_layers: see `forward`.
            output_predictions: see `forward`.
            output_mask_features: see `forward`.
            output_hidden_states: see `forward`.
        """
        project_masks = self.model.pixel_level_module.decoder.mask_projection
        queries, mask_embeddings = self.model.transformer_module(
            levels, [shrunk_mask_features(fpn_features, project_masks, level.shape[-2:]) for level in levels]
        )
        predicts = output_predictions or labels is not None
        frame_queries = torch.stack(queries[-num_query_layers:])
        mask_features = project_masks(fpn_features) if predicts or output_mask_features else None
        if predicts:
            mask_embeddings.append(self.embed_masks(queries[-1]))
        return self._detector_output(
            queries, mask_embeddings, frame_queries, fpn_features, mask_features, labels, output_hidden_states
        )

    def embed_masks(self, queries: torch.Tensor) -> torch.Tensor:
        """Return the mask embeddings `(..., Q, mask channels)` of normed queries `(..., Q, C)` of any layer."""
        return self.model.transformer_module.decoder.mask_predictor.mask_embedder(queries)

    def base_group(self) -> GroupParameters:
        """Return the learned queries with their positions and their mask head."""
        module = self.model.transformer_module
        return GroupParameters(
            module.queries_features.weight,
            [module.queries_embedder.weight] * len(module.decoder.layers),
            module.decoder.mask_predictor.mask_embedder,
        )

    def _detector_output(
        self,
        queries: list[torch.Tensor],
        mask_embeddings: list[torch.Tensor],
        frame_queries: torch.Tensor,
        fpn_features: torch.Tensor,
        mask_features: torch.Tensor | None,
        labels: list[dict[str, torch.Tensor]] | None,
        output_hidden_states: bool,
    ) -> FrameDetectorOutput:
        """Build the output of `predict`, with predictions if the mask embeddings of all layers are given.

        Args:
            queries: queries of each layer, `(N, Q, C)`.
            mask_embeddings: mask embeddings of each layer, `(N, Q, mask channels)`; without those of the last layer if
                no predictions are requested.
            frame_queries: queries of the last layers, `(layers, N, Q, C)`.
            fpn_features: the fine map `(N, C, H / 4, W / 4)`.
            mask_features: `(N, mask channels, H / 4, W / 4)`, or None if they are not requested.
            labels: targets of the losses, or None.
            output_hidden_states: return the queries of all layers.
        """
        predictions = class_logits = masks = loss = loss_dict = None
        if len(mask_embeddings) == len(queries):
            predictions = tuple(
                LayerPrediction(self.class_predictor(states), embeddings)
                for states, embeddings in zip(queries, mask_embeddings, strict=True)
            )
            class_logits = predictions[-1].class_logits
            if not self.training:
                masks = frame_mask_logits(mask_embeddings[-1], mask_features)
            if labels is not None:
                scored = predictions if self.config.use_auxiliary_loss else predictions[-1:]
                loss_dict, _ = self.criterion(scored, mask_features, labels)
                loss = sum(loss_dict.values())
        return FrameDetectorOutput(
            loss=loss,
            loss_dict=loss_dict,
            class_queries_logits=class_logits,
            masks_queries_logits=masks,
            frame_queries=frame_queries,
            fpn_features=fpn_features,
            mask_features=mask_features,
            predictions=predictions,
            hidden_states=tuple(queries) if output_hidden_states else None,
        )

    def _check_inputs(self, pixel_values: torch.Tensor, num_query_layers: int) -> None:
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            raise ValueError(
                f"`pixel_values` must have the shape (frames, 3, height, width), got {tuple(pixel_values.shape)}."
            )
        height, width = pixel_values.shape[-2:]
        if height % SIZE_DIVISOR or width % SIZE_DIVISOR:
            raise ValueError(
                f"Height and width of `pixel_values` must be multiples of {SIZE_DIVISOR}, got {height} x {width}. "
                "Pad the frames at the right and bottom, as the video processor does."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"`pixel_values` must be normalised floats, got {pixel_values.dtype}; use the video processor."
            )
        if not 1 <= num_query_layers <= self.config.decoder_layers:
            raise ValueError(f"`num_query_layers` must be 1 to {self.config.decoder_layers}, got {num_query_layers}.")


def shrunk_mask_features(fpn_features: torch.Tensor, projection: nn.Conv2d, size: tuple[int, int]) -> torch.Tensor:
    """Compute mask features at the size of a level, without gradients, for attention masks.

    Bilinear resizing commutes with the projection and with the product with mask embeddings. Shrinking the features
    once per level therefore replaces shrinking the mask logits of every query after every layer.

    Args:
        fpn_features: the fine map `(N, C, H / 4, W / 4)`.
        projection: projects the fine map to mask features.
        size: height and width of the level.

    Returns:
        `(N, mask channels, height, width)`.
    """
    shrunk = nn.functional.interpolate(fpn_features.detach(), size=size, mode="bilinear", align_corners=False)
    return pointwise_convolution(shrunk, projection.weight.detach(), projection.bias.detach())


__all__ = ["FrameDetector"]
