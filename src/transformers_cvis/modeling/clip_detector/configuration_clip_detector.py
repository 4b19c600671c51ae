"""The configuration shared by systems whose queries read all frames of a clip at once."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from ..frame_detector.configuration_frame_detector import FrameDetectorConfig


@strict
class ClipDetectorConfig(FrameDetectorConfig):
    r"""
    Configuration of a clip detector: that of the frame detector, so the `config.json` of a Mask2Former checkpoint, for
    images or videos, loads as it is, and the fields below. `id2label` is the only truth for the classes.

    detector_chunk_size (`int`, defaults to 18):
        Frames that go through backbone and pixel decoder at once at inference.
    max_clip_frames (`int`, defaults to 128):
        Most frames of a video that are one clip, as in published inference. A longer video is processed in windows of
        that many frames, and so is one for which the memory at hand is not enough, in shorter ones.
    window_overlap (`int`, defaults to 8):
        Frames that neighbouring windows share; their tracks are joined by what they say of these. At most half a
        window.
    class_targets (`"visible"` or `"released"`, defaults to `"visible"`):
        Which class queries are to give an object: that of the frames of the clip which show it. Released code reads
        classes from the last frame, so that an object which is absent there is to be no object, although its masks
        count; choose it to repeat published training. Two more quirks of CRISP's released loader have no switch: it
        keeps objects of other tasks as targets, with empty masks and the class no-object, while here they are left out
        with the data of their tasks (`ClassFilter`) and no model ever sees them; and on YouTube-VIS 2019 its number for
        no-object is 35, a real class, which the task that owns it learns from such objects, too.
    score_rule (`"mean_logits"` or `"max_times_quality"`, defaults to `"mean_logits"`):
        How tracks are scored, see `TrackAccumulator`: by class logits, averaged over the windows where there are
        several, as published, or as VITA and GenVIS do.
    """

    detector_chunk_size: int = 18
    max_clip_frames: int = 128
    window_overlap: int = 8
    class_targets: Literal["visible", "released"] = "visible"
    score_rule: Literal["mean_logits", "max_times_quality"] = "mean_logits"

    # Kinds of checkpoints beside its own whose configuration is a start. "video_mask2former" are Mask2Former's own for
    # videos, of a pull request that transformers did not merge.
    starts_from = ("cvis_frame_detector", "minvis", "video_mask2former")

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.label2id = {label: index for index, label in self.id2label.items()}

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type in cls.starts_from:
            config_dict["model_type"] = cls.model_type
        elif model_type != cls.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path} is a {model_type!r} model. {cls.model_type} goes on from one of its "
                f"own, or starts from a Mask2Former checkpoint (mask2former, {', '.join(cls.starts_from)})."
            )
        return config_dict, kwargs

    def validate_architecture(self):
        super().validate_architecture()
        for name, least in (("detector_chunk_size", 1), ("max_clip_frames", 2), ("window_overlap", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)} frames.")


__all__ = ["ClipDetectorConfig"]
