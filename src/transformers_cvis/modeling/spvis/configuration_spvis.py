# SPDX-License-Identifier: Apache-2.0
"""Configuration of SPVIS and of DVIS, which consists of the same parts."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from ...messages import check_at_least
from ..configuration_base import VideoConfigMixin, switch
from ..docstrings import document_config
from ..frame_detector.configuration_frame_detector import FrameDetectorConfig


@document_config
@strict
class SpvisConfig(VideoConfigMixin, FrameDetectorConfig):
    r"""Configuration of [`SpvisForVideoInstanceSegmentation`].

    It extends the configuration of the frame detector, so that the `config.json` of a MinVIS or Mask2Former checkpoint
    loads as it is. The defaults are those of online SPVIS. DVIS is `filter="referring"`, `alignment="released"`,
    offline with `refiner="dvis"`.

    Args:
        tracker_layers (`int`, *optional*, defaults to `6`):
            Layers of the tracker.
        tracker_dim_feedforward (`int`, *optional*, defaults to `2048`):
            Width of the feed-forward layers of tracker and refiner.
        filter (`"disturbance"` or `"referring"`, *optional*, defaults to `"disturbance"`):
            Layer through which tracks read the queries of a frame: the disturbance filter of SPVIS, or the referring
            cross-attention of DVIS.
        filter_dim_feedforward (`int`, *optional*, defaults to `2048`):
            Width of the feed-forward layer inside the disturbance filter.
        filter_residual (`"identity"` or `"released"`, *optional*, defaults to `"identity"`):
            Residual of the disturbance filter: the matched queries of the frame, then the output of the previous layer,
            as in DVIS. The released code leaves it out, so that every layer starts from the last frame and only the
            last layer counts; choose it to repeat published numbers.
        alignment (`"corrected"` or `"released"`, *optional*, defaults to `"corrected"`):
            Assignment that puts the queries of a frame in the order of the tracks. The released trackers of DVIS and
            SPVIS apply the inverse of the assignment that they compute; weights trained with it need it.
        refiner (`"spvis"` or `"dvis"`, *optional*):
            Refiner that reads the whole video after the tracker: the refinement compensator and spatial interaction of
            SPVIS, or the temporal refiner of DVIS. None is online.
        refiner_layers (`int`, *optional*, defaults to `6`):
            Layers of the spatial interaction or of the temporal refiner.
        compensator_repeats (`int`, *optional*, defaults to `1`):
            Repetitions of the second half of the compensator.
        joint (`"sum"`, `"sequential"` or `"interaction_only"`, *optional*, defaults to `"sum"`):
            Combination of compensator and interaction: both read the tracker and are added in every layer; the
            interaction reads the compensator; or the interaction is alone, as in released training.
        gate (`"sigmoid"` or `"none"`, *optional*, defaults to `"sigmoid"`):
            Last operation of a layer of the interaction; published is the sigmoid.
        conv_residual (`bool`, *optional*, defaults to `False`):
            Add a residual around the convolution over time of the interaction, as DVIS does.
        refiner_dropout (`float`, *optional*, defaults to `0.1`):
            Dropout of compensator and interaction.
        freeze_detector (`bool`, *optional*, defaults to `True`):
            Train without the frame detector. The detector alone trains as MinVIS.
        freeze_tracker (`bool`, *optional*, defaults to `True`):
            Train the refiner alone, if the model has one.
        guided_share (`float`, *optional*, defaults to `0.5`):
            Share of the training, from its beginning, in which objects are matched to the predictions of the previous
            stage (the detector's for the tracker, the tracker's for the refiner); see `set_training_progress`.

    Example:
    ```python
    >>> from transformers_cvis import SpvisConfig

    >>> config = SpvisConfig(id2label={0: "person", 1: "dog"}, refiner="spvis")
    >>> config.num_labels, config.joint
    (2, 'sum')

    ```
    """

    model_type = "spvis"

    tracker_layers: int = 6
    tracker_dim_feedforward: int = 2048
    filter: Literal["disturbance", "referring"] = "disturbance"
    filter_dim_feedforward: int = 2048
    filter_residual: Literal["identity", "released"] | None = switch(
        "identity",
        paper="identity",
        released="released",
        reason="The disturbance filter adds its reading to the matched queries and to the layer before.",
    )
    alignment: Literal["corrected", "released"] | None = switch(
        "corrected",
        paper="corrected",
        released="released",
        reason="Queries take the order of the tracks; released trackers apply the inverse assignment.",
    )
    refiner: Literal["spvis", "dvis"] | None = None
    refiner_layers: int = 6
    compensator_repeats: int = 1
    joint: Literal["sum", "sequential", "interaction_only"] | None = switch(
        "sum",
        paper="sum",
        released="interaction_only",
        reason="Compensator and interaction are both trained; released training leaves the compensator out.",
    )
    gate: Literal["sigmoid", "none"] = "sigmoid"
    conv_residual: bool = False
    refiner_dropout: float | int = 0.1
    freeze_detector: bool = True
    freeze_tracker: bool = True
    guided_share: float | int = 0.5
    class_targets: Literal["visible", "released"] | None = switch(
        "visible",
        paper="visible",
        released="released",
        reason="Objects that are absent in the last frame of a clip keep their class as target.",
    )

    def validate_architecture(self) -> None:
        """Check, beyond the base class, tracker, refiner and the guided share of the training."""
        super().validate_architecture()
        for name in ("tracker_layers", "refiner_layers", "compensator_repeats"):
            check_at_least(name, getattr(self, name), 1)
        if not 0 <= self.guided_share <= 1:
            raise ValueError(f"`guided_share` must be a share in 0..1 of the training, got {self.guided_share}.")


__all__ = ["SpvisConfig"]
