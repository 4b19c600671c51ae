# SPDX-License-Identifier: Apache-2.0
"""Configuration shared by the models that consist of a frame detector and a video head."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ...messages import check_at_least
from ..configuration_base import ScoreRule, VideoConfigMixin
from ..docstrings import document_config
from ..frame_detector.configuration_frame_detector import FRAME_DETECTORS, FrameDetectorConfig


@document_config
@strict
class CvisVideoConfig(VideoConfigMixin, PreTrainedConfig):
    r"""Configuration shared by the video models made of a frame detector and a video head.

    The head reads the frame queries of the detector. The detector has the classes of this configuration (`id2label`).

    Args:
        detector_config (`dict` or `FrameDetectorConfig`, *optional*):
            Configuration of the frame detector.
        num_queries (`int`, *optional*, defaults to `100`):
            Video queries, the most objects that one video can have.
        encoder_layers (`int`, *optional*, defaults to `6`):
            Layers of the object encoder over frame queries.
        decoder_layers (`int`, *optional*, defaults to `3`):
            Layers of the object decoder over video queries.
        dim_feedforward (`int`, *optional*, defaults to `2048`):
            Width of the feed-forward layers of the video head.
        num_attention_heads (`int`, *optional*, defaults to `8`):
            Heads of the attention layers of the video head.
        encoder_window_size (`int`, *optional*, defaults to `0`):
            Frames in one window of the object encoder; 0 attends over all frames.
        num_frame_query_layers (`int`, *optional*, defaults to `3`):
            Last layers of the frame decoder whose queries train the video head.
        freeze_detector (`bool`, *optional*, defaults to `False`):
            Train the video head alone; no gradient reaches the detector.
        similarity_weight (`float`, *optional*, defaults to `0.5`):
            Weight of the similarity loss between frame queries and video queries.
    """

    sub_configs: ClassVar[dict[str, type[PreTrainedConfig]]] = {"detector_config": FrameDetectorConfig}
    starts_from = ("vita", "genvis", "hvpl")
    detector_starts_from: ClassVar[tuple[str, ...]] = FRAME_DETECTORS

    detector_config: dict | PreTrainedConfig | None = None
    num_queries: int = 100
    encoder_layers: int = 6
    decoder_layers: int = 3
    dim_feedforward: int = 2048
    num_attention_heads: int = 8
    encoder_window_size: int = 0
    num_frame_query_layers: int = 3
    freeze_detector: bool = False
    score_rule: ScoreRule = "max_times_quality"
    no_object_weight: float | int = 0.1
    class_weight: float | int = 2.0
    mask_weight: float | int = 5.0
    dice_weight: float | int = 5.0
    similarity_weight: float | int = 0.5
    train_num_points: int = 12544
    oversample_ratio: float | int = 3.0
    importance_sample_ratio: float | int = 0.75

    def __post_init__(self, **kwargs: Any) -> None:
        if self.detector_config is None:
            self.detector_config = FrameDetectorConfig()
        elif isinstance(self.detector_config, dict):
            self.detector_config = FrameDetectorConfig(**self.detector_config)
        super().__post_init__(**kwargs)

    def share_labels(self) -> None:
        """Pass the classes of this configuration on to the detector's."""
        if isinstance(self.detector_config, PreTrainedConfig):
            self.detector_config.id2label = dict(self.id2label)

    def validate_architecture(self) -> None:
        """Check the sizes of the video head, also against those of the detector."""
        super().validate_architecture()
        hidden_dim = self.detector_config.hidden_dim
        if hidden_dim % self.num_attention_heads:
            raise ValueError(
                f"`detector_config.hidden_dim` ({hidden_dim}) must be a multiple of `num_attention_heads` "
                f"({self.num_attention_heads})."
            )
        for name in ("num_queries", "encoder_layers", "decoder_layers", "train_num_points"):
            check_at_least(name, getattr(self, name), 1)
        if self.encoder_window_size < 0:
            raise ValueError(
                f"`encoder_window_size` must be 0 (attention over all frames) or more, got {self.encoder_window_size}."
            )
        most = self.detector_config.decoder_layers
        if not 1 <= self.num_frame_query_layers <= most:
            raise ValueError(
                f"`num_frame_query_layers` must lie between 1 and the detector's {most} predictions "
                f"(`detector_config.decoder_layers`), got {self.num_frame_query_layers}."
            )


__all__ = ["CvisVideoConfig"]
