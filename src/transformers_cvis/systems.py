# SPDX-License-Identifier: Apache-2.0
"""Registration of systems from inside and outside the package, for all its parts at once."""

from importlib.metadata import entry_points

from transformers import AutoVideoProcessor, PreTrainedConfig
from transformers.utils import logging

from .modeling.auto import IMAGE_MODELS, MODELS, register_model
from .modeling.modeling_base import CvisPreTrainedModel
from .processing import CvisVideoProcessor

logger = logging.get_logger(__name__)

ENTRY_POINT_GROUP = "transformers_cvis.systems"


def register_system(config_class: type[PreTrainedConfig], model_class: type[CvisPreTrainedModel]) -> None:
    """Register a system with Auto classes, pipeline, command line, recipes (`system: <model_type>`) and trainer.

    An installed package can name a module that calls `register_system` as an entry point of the group
    "transformers_cvis.systems"; the module is imported with `transformers_cvis`.

    Args:
        config_class: configuration of the system, with a `model_type` of its own.
        model_class: model of the system, whose `config_class` is `config_class`.

    Raises:
        ValueError: the configuration has no `model_type`, or has that of another system.

    Example:
    ```python
    >>> from transformers_cvis import MinVisConfig, MinVisForVideoInstanceSegmentation, register_system

    >>> class MyConfig(MinVisConfig):
    ...     model_type = "my_minvis"

    >>> class MyModel(MinVisForVideoInstanceSegmentation):
    ...     config_class = MyConfig

    >>> register_system(MyConfig, MyModel)

    ```
    """
    register_model(config_class, model_class)
    AutoVideoProcessor.register(config_class, CvisVideoProcessor, exist_ok=True)


def register_own_systems() -> None:
    """Register the video processor for the models of the package, then the systems of installed packages."""
    for config_class in (*MODELS, *IMAGE_MODELS):
        AutoVideoProcessor.register(config_class, CvisVideoProcessor, exist_ok=True)
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry_point.load()
        except Exception as error:  # of a foreign package: the others work without it
            logger.warning(f"The system {entry_point.name!r} cannot be loaded: {type(error).__name__}: {error}")


__all__ = ["register_system"]
