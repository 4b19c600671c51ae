"""The systems that the converter knows. A system joins by an entry in `SYSTEMS`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from transformers import Mask2FormerForUniversalSegmentation, PreTrainedConfig, PreTrainedModel

from ..modeling.crisp import CrispForVideoInstanceSegmentation
from ..modeling.genvis import GenVisForVideoInstanceSegmentation
from ..modeling.hvpl import HvplForVideoInstanceSegmentation
from ..modeling.mask2former_vis import Mask2FormerVisForVideoInstanceSegmentation
from ..modeling.minvis import MinVisForVideoInstanceSegmentation
from ..modeling.spvis import SpvisForVideoInstanceSegmentation
from ..modeling.vita import VitaForVideoInstanceSegmentation
from .clip_configurations import infer_crisp_config, infer_mask2former_vis_config
from .hvpl_configurations import infer_hvpl_config
from .released.crisp import crisp_rules
from .released.hvpl import hvpl_rules
from .released.mask2former import infer_mask2former_config, infer_minvis_config
from .released.spvis import dvis_rules, spvis_rules
from .released.vita_genvis import genvis_rules, vita_rules
from .rules import Rule, frame_detector_rules
from .spvis_configurations import infer_spvis_config
from .video_configurations import infer_video_config

# Short side of test videos in pixels, by backbone, as published.
FRAME_SIDES = {"resnet": 360, "swin": 480}
VIDEO_HEAD_SIDES = {"resnet": 360, "swin": 448}


@dataclass(frozen=True)
class System:
    """What the converter knows of a system.

    Args:
        rules: gives the table of names, of which the first matching rule counts.
        infer_config: configuration from released names and tensors, and from fields that these do not tell as keyword
            arguments, `id2label` among them. Raises a ValueError where the tensors are another system's.
        model_class: what the weights become.
        short_sides: short side of videos in pixels, by the backbone's `model_type`.
        untold: fields that change what the model computes and that no tensor tells; the report names them.
        remark: what else no tensor tells, a sentence for the report.
    """

    rules: Callable[[], list[Rule]]
    infer_config: Callable[..., PreTrainedConfig]
    model_class: type[PreTrainedModel]
    short_sides: dict[str, int]
    untold: tuple[str, ...] = ()
    remark: str | None = None


SYSTEMS = {
    "vita": System(
        vita_rules,
        partial(infer_video_config, system="vita"),
        VitaForVideoInstanceSegmentation,
        VIDEO_HEAD_SIDES,
        untold=("encoder_window_size",),
    ),
    "genvis": System(
        genvis_rules,
        partial(infer_video_config, system="genvis"),
        GenVisForVideoInstanceSegmentation,
        VIDEO_HEAD_SIDES,
        untold=("clip_length",),
    ),
    "hvpl": System(
        hvpl_rules,
        infer_hvpl_config,
        HvplForVideoInstanceSegmentation,
        VIDEO_HEAD_SIDES,
        untold=("calibration_deltas",),
    ),
    "crisp": System(
        crisp_rules,
        infer_crisp_config,
        CrispForVideoInstanceSegmentation,
        FRAME_SIDES,
        untold=("calibration_deltas",),
    ),
    "spvis": System(
        spvis_rules, partial(infer_spvis_config, system="spvis"), SpvisForVideoInstanceSegmentation, FRAME_SIDES
    ),
    "dvis": System(
        dvis_rules, partial(infer_spvis_config, system="dvis"), SpvisForVideoInstanceSegmentation, FRAME_SIDES
    ),
    "minvis": System(frame_detector_rules, infer_minvis_config, MinVisForVideoInstanceSegmentation, FRAME_SIDES),
    "mask2former-vis": System(
        frame_detector_rules,
        infer_mask2former_vis_config,
        Mask2FormerVisForVideoInstanceSegmentation,
        FRAME_SIDES,
        remark="No tensor tells whether it was trained on videos; one that was trained on images tracks as minvis.",
    ),
    # In transformers' own format: for images as it is, and as frame detector or MinVIS of this package.
    "mask2former": System(
        frame_detector_rules, infer_mask2former_config, Mask2FormerForUniversalSegmentation, FRAME_SIDES
    ),
}
