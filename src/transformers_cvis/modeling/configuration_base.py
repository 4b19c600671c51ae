# SPDX-License-Identifier: Apache-2.0
"""Base of all configurations: classes, the checkpoints that a system starts from, unknown keys, behaviour switches."""

import os
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from transformers import PreTrainedConfig
from transformers.utils import logging

from ..messages import check_at_least, did_you_mean

logger = logging.get_logger(__name__)

# Keys that transformers writes into a config.json, or reads from it, although they are not fields.
KEYS_OF_THE_LIBRARY = {"model_type", "auto_map", "custom_pipelines", "quantization_config"}

Behaviour = Literal["default", "paper", "released"]
ScoreRule = Literal["mean_logits", "max_times_quality"]


def switch(default: Any, *, paper: Any, released: Any, reason: str) -> Any:
    """Declare a configuration field whose value follows `behaviour` unless it is set.

    Args:
        default: Value for `behaviour="default"`.
        paper: Value that follows the text of the paper.
        released: Value that follows the released code.
        reason: The difference, as one sentence for the table of switches.

    Returns:
        A dataclass field. Its own default is None, which `CvisConfigMixin` replaces by the value of the behaviour.
    """
    values = {"default": default, "paper": paper, "released": released}
    return field(default=None, metadata={"switch": values, "reason": reason})


@dataclass(kw_only=True, repr=False)
class CvisConfigMixin:
    """Base of all configurations; precedes `PreTrainedConfig`, or a configuration of transformers, in the bases.

    `id2label` is the only source of the classes: its keys are 0 to `num_labels - 1`, and `label2id` follows it. A key
    that does not name a field is dropped with a warning that names the nearest field.

    Attributes:
        starts_from (`tuple[str, ...]`): Model types of other systems whose checkpoints can start this one.

    Args:
        behaviour (`"default"`, `"paper"` or `"released"`, *optional*, defaults to `"default"`):
            Values of all switches of the configuration at once: the defaults of this package, which repair defects of
            the released code; those of the text of the paper; or those of the released code. A switch that is set by
            itself keeps its value. `docs/switches.md` lists them.
    """

    starts_from: ClassVar[tuple[str, ...]] = ()

    behaviour: Behaviour = "default"

    def __post_init__(self, **kwargs: Any) -> None:
        for name, values in switches(type(self)).items():
            if getattr(self, name) is None:
                setattr(self, name, values[self.behaviour])
        super().__post_init__(**kwargs)
        drop_unknown_keys(self, kwargs)
        self.id2label = self.id2label  # `label2id` of a file may not fit

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "id2label" and value is not None:
            value = numbered_classes(value)
        super().__setattr__(name, value)
        if name == "behaviour":
            for switch_name, values in switches(type(self)).items():
                setattr(self, switch_name, values[value])
        if name == "id2label" and value is not None:
            super().__setattr__("label2id", {label: index for index, label in value.items()})
            self.share_labels()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "CvisConfigMixin":
        """Build a configuration from a dictionary, changed by `kwargs`; a new `behaviour` resets saved switches."""
        if "behaviour" in kwargs:
            # Switches that were saved follow the new behaviour; those in `kwargs` are set by themselves.
            config_dict = {key: value for key, value in config_dict.items() if key not in switches(cls)}
            config_dict["behaviour"] = kwargs.pop("behaviour")
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a `config.json`; convert that of a system in `starts_from` to one of this system.

        Raises:
            ValueError: The configuration belongs to a system that cannot start this one.
        """
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type in cls.starts_from:
            known = {entry.name for entry in fields(cls)} | KEYS_OF_THE_LIBRARY
            config_dict = {key: value for key, value in config_dict.items() if key in known or key.startswith("_")}
            config_dict["model_type"] = cls.model_type
        elif model_type != cls.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path} is a {model_type!r} model. A {cls.model_type!r} model loads its own "
                f"checkpoints{_or_starts_from(cls.starts_from)}."
            )
        return config_dict, kwargs

    def share_labels(self) -> None:
        """Pass the classes on to the fields that depend on them; called when `id2label` is set."""


@dataclass(kw_only=True, repr=False)
class VideoConfigMixin(CvisConfigMixin):
    """Base of the configurations of video models; precedes the network's configuration in the bases.

    Args:
        detector_chunk_size (`int`, *optional*, defaults to `18`):
            Frames that pass through the detector at once at inference.
        score_rule (`"mean_logits"` or `"max_times_quality"`, *optional*, defaults to `"mean_logits"`):
            Rule by which tracks are scored, see `TrackAccumulator`: class logits averaged over frames or windows, as
            MinVIS, SPVIS and Mask2Former-VIS publish it; or the largest class score times the quality of the mask, as
            VITA and GenVIS publish it.
    """

    detector_chunk_size: int = 18
    score_rule: ScoreRule = "mean_logits"

    def validate_detector_chunk_size(self) -> None:
        """Check that at least one frame passes through the detector at once."""
        check_at_least("detector_chunk_size", self.detector_chunk_size, 1, "frame")


def switches(config_class: type) -> dict[str, dict[str, Any]]:
    """Return the switches of a configuration class: field name to value by behaviour."""
    return {entry.name: entry.metadata["switch"] for entry in fields(config_class) if "switch" in entry.metadata}


def switch_table(config_classes: list[type]) -> str:
    """Return the table of all switches as Markdown, one row for each switch of each system."""
    rows = ["| system | field | default | paper | released | what differs |", "| --- | --- | --- | --- | --- | --- |"]
    for config_class in config_classes:
        for entry in fields(config_class):
            if values := entry.metadata.get("switch"):
                cells = [config_class.model_type, f"`{entry.name}`", *(f"`{value!r}`" for value in values.values())]
                rows.append(f"| {' | '.join([*cells, entry.metadata['reason']])} |")
    return "\n".join(rows) + "\n"


def numbered_classes(id2label: dict[int | str, str]) -> dict[int, str]:
    """Return `id2label` with integer keys in rising order.

    Raises:
        ValueError: The keys of n classes are not 0 to n - 1.
    """
    try:
        numbered = {int(key): name for key, name in id2label.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"`id2label` maps class numbers to names, got the key {_not_a_number(id2label)!r}.") from error
    if sorted(numbered) != list(range(len(numbered))):
        raise ValueError(
            f"`id2label` must number its {len(numbered)} classes 0 to {len(numbered) - 1} without gaps, got "
            f"{sorted(numbered)[:5]}{' ...' if len(numbered) > 5 else ''}. Class numbers count from 0, also where the "
            "category ids of an annotation file count from 1."
        )
    return {key: numbered[key] for key in sorted(numbered)}


def drop_unknown_keys(config: PreTrainedConfig, kwargs: dict[str, Any]) -> None:
    """Remove the attributes of `config` that transformers made of unknown `kwargs`; warn about each of them.

    A warning names the nearest field. It is not an error, so that files of other versions can be read. A key whose
    value is None is dropped silently.
    """
    known = {entry.name for entry in fields(config)}
    for key in kwargs:
        if key in known | KEYS_OF_THE_LIBRARY or key.startswith("_") or key not in vars(config):
            continue
        delattr(config, key)
        if kwargs[key] is None:
            continue
        logger.warning(f"{type(config).__name__} has no field `{key}`; its value is ignored.{did_you_mean(key, known)}")


def _or_starts_from(model_types: tuple[str, ...]) -> str:
    return f", or starts from one of {', '.join(model_types)}" if model_types else ""


def _not_a_number(keys: Any) -> Any:
    for key in keys:
        try:
            int(key)
        except (TypeError, ValueError):
            return key
    return None
