# SPDX-License-Identifier: Apache-2.0
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
from .modeling_base import CvisPreTrainedModel
from .spvis import SpvisConfig, SpvisForVideoInstanceSegmentation
from .task_clip_detector import TaskClipDetectorConfig, TaskClipDetectorForVideoInstanceSegmentation
from .vita import VitaConfig, VitaForVideoInstanceSegmentation

# Image models of transformers, and the video model that their checkpoints load as.
IMAGE_MODELS = {Mask2FormerConfig: MinVisForVideoInstanceSegmentation}
# Filled by `register_model`: model class by configuration class, and configuration class by the name of the system,
# which is the `model_type` of the configuration and the `system` of a recipe.
MODELS: dict[type[PreTrainedConfig], type[CvisPreTrainedModel]] = {}
SYSTEMS: dict[str, type[PreTrainedConfig]] = {}


class AutoModelForVideoInstanceSegmentation(_BaseAutoModelClass):
    """Choose the video instance segmentation model that belongs to a configuration or a checkpoint.

    `from_pretrained` takes a folder or a Hub repository, with `revision` if wanted; `from_config` builds an untrained
    model. A Mask2Former checkpoint becomes a MinVIS.
    """

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


def load_config(name: str, revision: str | None, given_as: str, remedy: str) -> PreTrainedConfig:
    """Load a configuration with `AutoConfig`, for a name that a user gave.

    Args:
        name: Folder, or repository of the Hub.
        revision: Branch, tag or commit of the repository; None is its default branch.
        given_as: Place where the user gave the name, for messages.
        remedy: Sentence on what to do if nothing is found.

    Raises:
        OSError: The folder does not hold a model; or neither a folder nor a model on the Hub is found, for example
            because the Hub is out of reach.
    """
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise OSError(f"{given_as}: this folder does not hold a saved model: config.json is missing. {remedy}")
    try:
        return AutoConfig.from_pretrained(name, revision=revision)
    except OSError as error:
        if folder.is_dir():
            raise
        raise OSError(
            f"{given_as}: no such folder, and no such model found on the Hub. {remedy} Error of the loader: {error}"
        ) from error


def register_model(config_class: type[PreTrainedConfig], model_class: type[CvisPreTrainedModel]) -> None:
    """Make the Auto classes, recipes and schedules know a video model.

    Args:
        config_class: Its configuration, with a `model_type` of its own.
        model_class: The model, whose `config_class` it is.

    Raises:
        ValueError: The configuration has no `model_type`, or one that another system has.
    """
    name = config_class.model_type
    if not name:
        raise ValueError(f"{config_class.__name__} needs a `model_type`, the name of its system in files and recipes.")
    other = SYSTEMS.get(name, config_class)
    if (other.__module__, other.__qualname__) != (config_class.__module__, config_class.__qualname__):
        raise ValueError(
            f"The `model_type` {name!r} of {config_class.__name__} is that of {other.__name__}: choose another."
        )
    MODELS.pop(other, None)  # the same class of a module that was imported again
    MODELS[config_class] = model_class
    SYSTEMS[name] = config_class
    AutoConfig.register(name, config_class, exist_ok=True)
    AutoModel.register(config_class, model_class, exist_ok=True)
    AutoModelForVideoInstanceSegmentation.register(config_class, model_class, exist_ok=True)


def _register_own_models() -> None:
    """Register the frame detector and the systems of the package."""
    AutoConfig.register(FrameDetectorConfig.model_type, FrameDetectorConfig, exist_ok=True)
    AutoModel.register(FrameDetectorConfig, FrameDetector, exist_ok=True)
    register_model(VitaConfig, VitaForVideoInstanceSegmentation)
    register_model(GenVisConfig, GenVisForVideoInstanceSegmentation)
    register_model(HvplConfig, HvplForVideoInstanceSegmentation)
    register_model(TaskClipDetectorConfig, TaskClipDetectorForVideoInstanceSegmentation)
    register_model(CrispConfig, CrispForVideoInstanceSegmentation)
    register_model(Mask2FormerVisConfig, Mask2FormerVisForVideoInstanceSegmentation)
    register_model(MinVisConfig, MinVisForVideoInstanceSegmentation)
    register_model(SpvisConfig, SpvisForVideoInstanceSegmentation)
    for config_class, model_class in IMAGE_MODELS.items():
        # `AutoModel` keeps giving transformers' own model for them.
        AutoModelForVideoInstanceSegmentation._model_mapping.register(config_class, model_class, exist_ok=True)


_register_own_models()

__all__ = [
    "IMAGE_MODELS",
    "MODELS",
    "SYSTEMS",
    "AutoModelForVideoInstanceSegmentation",
    "load_config",
    "register_model",
]
