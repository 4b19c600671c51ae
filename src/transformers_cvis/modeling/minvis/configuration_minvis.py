"""Configuration of MinVIS."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from ..frame_detector.configuration_frame_detector import FrameDetectorConfig


@strict
class MinVisConfig(FrameDetectorConfig):
    r"""
    Configuration of [`MinVisForVideoInstanceSegmentation`]: that of the frame detector, so the `config.json` of a
    Mask2Former checkpoint loads as it is, and the fields below. `id2label` is the only truth for the classes.

    detector_chunk_size (`int`, defaults to 18):
        Frames that go through the detector at once at inference.
    score_rule (`"mean_logits"` or `"max_times_quality"`, defaults to `"mean_logits"`):
        How tracks are scored, see `TrackAccumulator`: by class logits averaged over the frames, as published, or as
        VITA and GenVIS do.

    Example:

    ```python
    >>> from transformers_cvis import MinVisConfig

    >>> config = MinVisConfig(id2label={0: "person", 1: "dog"})
    >>> config.num_labels
    2

    ```
    """

    model_type = "minvis"

    detector_chunk_size: int = 18
    score_rule: Literal["mean_logits", "max_times_quality"] = "mean_logits"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.label2id = {label: index for index, label in self.id2label.items()}

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type == FrameDetectorConfig.model_type:
            config_dict["model_type"] = cls.model_type
        elif model_type != cls.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path} is a {model_type!r} model. MinVIS takes a Mask2Former checkpoint "
                "(`model_type` 'mask2former'), for example facebook/mask2former-swin-tiny-coco-instance."
            )
        return config_dict, kwargs

    def validate_architecture(self):
        super().validate_architecture()
        if self.detector_chunk_size < 1:
            raise ValueError(f"`detector_chunk_size` must be at least 1 frame, got {self.detector_chunk_size}.")


__all__ = ["MinVisConfig"]
