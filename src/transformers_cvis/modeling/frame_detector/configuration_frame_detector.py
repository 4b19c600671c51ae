# SPDX-License-Identifier: Apache-2.0
"""Configuration of the frame detector."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import Mask2FormerConfig, PreTrainedConfig, ResNetConfig

from ...messages import check_at_least
from ..configuration_base import CvisConfigMixin
from ..docstrings import document_config

# Model types whose weights hold a whole frame detector, under the names used here. "video_mask2former" is Mask2Former
# for videos, from a pull request that transformers did not merge.
FRAME_DETECTORS = (
    *("mask2former", "video_mask2former", "cvis_frame_detector", "minvis", "spvis"),
    *("mask2former_vis", "task_clip_detector", "crisp"),
)


@document_config
@strict
class FrameDetectorConfig(CvisConfigMixin, Mask2FormerConfig):
    r"""Configuration of [`FrameDetector`]: a Mask2Former configuration, whose `config.json` files load as they are.

    The backbone is a ResNet-50 unless `backbone_config` names another one.

    Args:
        freeze_batch_norm (`bool`, *optional*, defaults to `True`):
            Keep statistics, scale and shift of the backbone's batch norms fixed in training as well, as released ResNet
            checkpoints expect. Set it to False to train a small ResNet from scratch.
        encoder_layers (`int`, *optional*, defaults to `6`):
            Layers of deformable attention in the pixel decoder.
        decoder_layers (`int`, *optional*, defaults to `10`):
            Predictions of the masked-attention decoder: one of the learned queries, and one for each of its layers.

    Example:
    ```python
    >>> from transformers_cvis.modeling.frame_detector import FrameDetectorConfig

    >>> config = FrameDetectorConfig(id2label={0: "person", 1: "dog"})
    >>> config.backbone_config.model_type, config.num_queries
    ('resnet', 100)

    ```
    """

    model_type = "cvis_frame_detector"
    starts_from = FRAME_DETECTORS
    backbones_supported = ("swin", "resnet")

    freeze_batch_norm: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.backbone_config is None:
            self.backbone_config = ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
        super().__post_init__(**kwargs)

    @classmethod
    def from_frame_detector(cls, config: Mask2FormerConfig, **changes: Any) -> "FrameDetectorConfig":
        """Return a configuration of the same network as that of a Mask2Former or frame detector configuration.

        Args:
            config: the configuration to convert.
            changes: fields to set to other values.
        """
        settings = {name: value for name, value in config.to_dict().items() if name != "model_type"}
        converted = cls(**{**settings, **changes})
        converted._commit_hash = getattr(config, "_commit_hash", None)
        return converted

    @property
    def _attn_implementation(self) -> str | None:
        return self._attn_implementation_internal

    @_attn_implementation.setter
    def _attn_implementation(self, value: str | dict | None) -> None:
        # A single name is for the detector only. The backbone may not support it and keeps its own implementation.
        value = {"": value} if isinstance(value, str) else value
        PreTrainedConfig._attn_implementation.fset(self, value)

    def validate_architecture(self) -> None:
        """Check that the fields describe a network that the frame detector can build.

        Raises:
            ValueError: A size does not divide as needed, or an option of Mask2Former is not supported.
        """
        super().validate_architecture()
        for name in ("feature_size", "hidden_dim"):
            size = getattr(self, name)
            if size % self.num_attention_heads != 0:
                raise ValueError(
                    f"`{name}` must be a multiple of `num_attention_heads` ({self.num_attention_heads}), got {size}."
                )
            if size % 4 != 0:
                raise ValueError(f"`{name}` must be a multiple of 4 (sine and cosine of y and x), got {size}.")
        if self.feature_size % 32 != 0:
            raise ValueError(f"`feature_size` must be a multiple of 32 (group norm), got {self.feature_size}.")
        # The prediction from the learned queries counts as one layer.
        check_at_least("decoder_layers", self.decoder_layers, 2)
        if self.pre_norm:
            raise ValueError(
                "`pre_norm=True` is not supported: the decoder normalises after each block. Set it to False."
            )
        if self.common_stride != 4 or list(self.feature_strides) != [4, 8, 16, 32]:
            raise ValueError(
                "The detector needs `feature_strides=[4, 8, 16, 32]` and `common_stride=4`, got "
                f"{list(self.feature_strides)} and {self.common_stride}."
            )


__all__ = ["FRAME_DETECTORS", "FrameDetectorConfig"]
