# SPDX-License-Identifier: Apache-2.0
"""Configuration of SPVIS and of DVIS, which consists of the same parts."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from ...messages import check_at_least
from ..configuration_base import VideoConfigMixin, switch
from ..frame_detector.configuration_frame_detector import FrameDetectorConfig


@strict
class SpvisConfig(VideoConfigMixin, FrameDetectorConfig):
    r"""
    Configuration of [`SpvisForVideoInstanceSegmentation`]: that of the frame detector, so the `config.json` of a MinVIS
    or Mask2Former checkpoint loads as it is, the fields of `VideoConfigMixin`, and the following.

    The defaults are those of online SPVIS. DVIS is `filter="referring"`, `alignment="released"`, offline with
    `refiner="dvis"`.

    tracker_layers (`int`, defaults to 6):
        Layers of the tracker.
    tracker_dim_feedforward (`int`, defaults to 2048):
        Width of the feed-forward layers of tracker and refiner.
    filter (`"disturbance"` or `"referring"`, defaults to `"disturbance"`):
        How tracks read the queries of a frame: through the disturbance filter of SPVIS, or the referring
        cross-attention of DVIS.
    filter_dim_feedforward (`int`, defaults to 2048):
        Width of the feed-forward layer inside the disturbance filter.
    filter_residual (`"identity"` or `"released"`, defaults to `"identity"`):
        What the disturbance filter adds its reading to: the matched queries of the frame, then the output of the layer
        before, as in DVIS. The released code leaves them out, so that its layers start from the last frame one by one
        and only the last of them counts; choose it to repeat published numbers.
    alignment (`"corrected"` or `"released"`, defaults to `"corrected"`):
        How the queries of a frame are put in the order of the tracks. The released trackers of DVIS and SPVIS apply the
        inverse of the assignment that they compute; weights trained with it need it.
    refiner (`"spvis"`, `"dvis"`, *optional*):
        What sees the whole video after the tracker: the refinement compensator and spatial interaction of SPVIS, or the
        temporal refiner of DVIS. None is online.
    refiner_layers (`int`, defaults to 6):
        Layers of the spatial interaction or of the temporal refiner.
    compensator_repeats (`int`, defaults to 1):
        How often the compensator applies its second half.
    joint (`"sum"`, `"sequential"` or `"interaction_only"`, defaults to `"sum"`):
        How compensator and interaction meet: both read the tracker and are added in every layer; the interaction reads
        the compensator; or the interaction is alone, as released training has it.
    gate (`"sigmoid"` or `"none"`, defaults to `"sigmoid"`):
        What ends a layer of the interaction; published is the sigmoid.
    conv_residual (`bool`, defaults to `False`):
        Add a residual around the convolution over time of the interaction, as DVIS does.
    refiner_dropout (`float`, defaults to 0.1):
        Dropout of compensator and interaction.
    freeze_detector (`bool`, defaults to `True`):
        Train without the frame detector. The detector alone trains as MinVIS.
    freeze_tracker (`bool`, defaults to `True`):
        Train the refiner alone, where there is one.
    guided_share (`float`, defaults to 0.5):
        Share of the training, from its beginning, in which objects are matched to the predictions of the stage before
        (the detector's for the tracker, the tracker's for the refiner); see `set_training_progress`.
    class_targets (`"visible"` or `"released"`, defaults to `"visible"`):
        Which class tracker and refiner are to give an object: that of the frames of the clip which show it. The
        released code reads classes from the last frame, so that an object which is absent there is to be no object;
        choose it to repeat published training.

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
