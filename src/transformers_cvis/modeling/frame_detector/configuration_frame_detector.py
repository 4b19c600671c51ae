# SPDX-License-Identifier: Apache-2.0
"""Configuration of the frame detector."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import Mask2FormerConfig, PreTrainedConfig, ResNetConfig

from ..configuration_base import CvisConfigMixin
from ..docstrings import document_config

# Systems whose weights hold a whole frame detector under the names that it has here. "video_mask2former" is Mask2Former
# for videos, of a pull request that transformers did not merge.
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
    backbones_supported: ClassVar[list[str]] = ["swin", "resnet"]

    freeze_batch_norm: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.backbone_config is None:
            self.backbone_config = ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
        super().__post_init__(**kwargs)

    @classmethod
    def from_frame_detector(cls, config: Mask2FormerConfig, **changes: Any) -> "FrameDetectorConfig":
        """Copy a Mask2Former or frame detector configuration, with some fields changed."""
        settings = {name: value for name, value in config.to_dict().items() if name != "model_type"}
        converted = cls(**{**settings, **changes})
        converted._commit_hash = getattr(config, "_commit_hash", None)
        return converted

    @property
    def _attn_implementation(self) -> str | None:
        return self._attn_implementation_internal

    @_attn_implementation.setter
    def _attn_implementation(self, value: str | dict | None) -> None:
        # One name applies to the detector alone: the backbone, which may not know it, keeps its implementation.
        value = {"": value} if isinstance(value, str) else value
        PreTrainedConfig._attn_implementation.fset(self, value)

    def validate_architecture(self) -> None:
        """Check the fields; called by transformers when the configuration is built."""
        super().validate_architecture()
        for name in ("feature_size", "hidden_dim"):
            size = getattr(self, name)
            if size % self.num_attention_heads != 0:
                raise ValueError(
                    f"{name} must be a multiple of num_attention_heads={self.num_attention_heads}, got {size}."
                )
            if size % 4 != 0:
                raise ValueError(f"{name} must be a multiple of 4 (sine and cosine of y and x), got {size}.")
        if self.feature_size % 32 != 0:
            raise ValueError(f"feature_size must be a multiple of 32 (group norm), got {self.feature_size}.")
        if self.decoder_layers < 2:
            raise ValueError(
                "decoder_layers counts the prediction from the learned queries too and must be at least 2, "
                f"got {self.decoder_layers}."
            )
        if self.pre_norm:
            raise ValueError("pre_norm=True is not supported: the detector's decoder normalises after each block.")
        if self.common_stride != 4 or list(self.feature_strides) != [4, 8, 16, 32]:
            raise ValueError(
                "The detector needs backbone maps of strides 4, 8, 16, 32 and masks at stride 4; got feature_strides="
                f"{list(self.feature_strides)}, common_stride={self.common_stride}."
            )


__all__ = ["FRAME_DETECTORS", "FrameDetectorConfig"]
