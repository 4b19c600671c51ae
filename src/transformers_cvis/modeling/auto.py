"""`AutoModelForVideoInstanceSegmentation`, and the entries of our models in transformers' Auto classes."""

from collections import OrderedDict
from pathlib import Path

from transformers import AutoConfig, AutoModel, Mask2FormerConfig, PreTrainedConfig
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from .crisp import CrispConfig, CrispForVideoInstanceSegmentation
from .frame_detector import FrameDetector, FrameDetectorConfig
from .genvis import GenVisConfig, GenVisForVideoInstanceSegmentation
from .hvpl import HvplConfig, HvplForVideoInstanceSegmentation
from .mask2former_vis import Mask2FormerVisConfig, Mask2FormerVisForVideoInstanceSegmentation
from .minvis import MinVisConfig, MinVisForVideoInstanceSegmentation
from .spvis import SpvisConfig, SpvisForVideoInstanceSegmentation
from .task_clip_detector import TaskClipDetectorConfig, TaskClipDetectorForVideoInstanceSegmentation
from .vita import VitaConfig, VitaForVideoInstanceSegmentation

MODELS = {
    VitaConfig: VitaForVideoInstanceSegmentation,
    GenVisConfig: GenVisForVideoInstanceSegmentation,
    HvplConfig: HvplForVideoInstanceSegmentation,
    TaskClipDetectorConfig: TaskClipDetectorForVideoInstanceSegmentation,
    CrispConfig: CrispForVideoInstanceSegmentation,
    Mask2FormerVisConfig: Mask2FormerVisForVideoInstanceSegmentation,
    MinVisConfig: MinVisForVideoInstanceSegmentation,
    SpvisConfig: SpvisForVideoInstanceSegmentation,
}
# The configurations by the names of their systems, as recipes give them.
SYSTEMS = {config_class.model_type: config_class for config_class in MODELS}
# Image models of transformers, and what their checkpoints become here.
IMAGE_MODELS = {Mask2FormerConfig: MinVisForVideoInstanceSegmentation}


class AutoModelForVideoInstanceSegmentation(_BaseAutoModelClass):
    """The video instance segmentation model that a configuration or a checkpoint names.

    `from_pretrained` takes a folder or a Hub repository, with `revision` if wanted; `from_config` builds an untrained
    model. A Mask2Former checkpoint becomes a MinVIS.
    """

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


def load_config(name: str, revision: str | None, given_as: str, remedy: str) -> PreTrainedConfig:
    """`AutoConfig.from_pretrained`, for a name that a user gave.

    Args:
        given_as: where, for messages. remedy: a sentence on what to do if it leads nowhere.

    Raises:
        OSError: a folder without a model; or no such folder and no such model on the Hub, which may be out of reach.
    """
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise OSError(f"{given_as}: this folder holds no saved model, as it has no config.json. {remedy}")
    try:
        return AutoConfig.from_pretrained(name, revision=revision)
    except OSError as error:
        if folder.is_dir():
            raise
        raise OSError(
            f"{given_as}: there is no such folder, and the Hub gives no such model. {remedy} The loader says: {error}"
        ) from error


def register_models() -> None:
    """Make `AutoConfig`, `AutoModel` and `AutoModelForVideoInstanceSegmentation` know every model of the package."""
    AutoConfig.register(FrameDetectorConfig.model_type, FrameDetectorConfig, exist_ok=True)
    AutoModel.register(FrameDetectorConfig, FrameDetector, exist_ok=True)
    for config_class, model_class in MODELS.items():
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, model_class, exist_ok=True)
        AutoModelForVideoInstanceSegmentation.register(config_class, model_class, exist_ok=True)
    for config_class, model_class in IMAGE_MODELS.items():
        # `AutoModel` keeps giving transformers' own model for them.
        AutoModelForVideoInstanceSegmentation._model_mapping.register(config_class, model_class, exist_ok=True)


__all__ = ["AutoModelForVideoInstanceSegmentation", "load_config", "register_models"]
