"""Keys of a configuration that no field takes: typos, and fields of newer versions."""

import difflib
from dataclasses import fields

from transformers import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Written into a config.json by transformers itself, or read from there, without being a field of a configuration.
KEYS_OF_THE_LIBRARY = {"model_type", "auto_map", "custom_pipelines", "quantization_config"}


def drop_unknown_keys(config: PreTrainedConfig, kwargs: dict) -> None:
    """Remove from `config` what transformers kept of `kwargs` although no field takes it, with a warning for each key.

    The warning names the nearest field. It is no error, so that files of other versions can be read; a key whose value
    is None says nothing and goes without a warning.
    """
    known = {field.name for field in fields(config)}
    for key in kwargs:
        if key in known | KEYS_OF_THE_LIBRARY or key.startswith("_") or key not in vars(config):
            continue
        delattr(config, key)
        if kwargs[key] is None:
            continue
        nearest = difflib.get_close_matches(key, known, n=1)
        hint = f" Did you mean `{nearest[0]}`?" if nearest else ""
        logger.warning(f"{type(config).__name__} has no field `{key}`; its value is ignored.{hint}")
