# SPDX-License-Identifier: Apache-2.0
"""Rules that rename the tensors of released checkpoints, and the entry that describes a system to the converter.

A table of names is a plain list of rules, and the first rule that matches a name counts. Lists combine: a system with a
frame detector has the rules of its own head and `prefixed(frame_detector_rules(), "detector.")`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Rename:
    """Move a tensor to one or more names in the model.

    Args:
        pattern: regular expression for a whole released name.
        target: name in the model, a template for `re.Match.expand`. Several targets share the rows of the tensor in
            equal parts.
        squeeze: drop the first axis of the tensor, which has length one.
        copies: regular expression whose first group is the index of a layer, for a tensor that all these layers share.
            Each layer gets a copy of its own; `*` in `target` stands for the index.
    """

    pattern: str
    target: str | tuple[str, ...]
    squeeze: bool = False
    copies: str | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """All targets, also where there is only one."""
        return (self.target,) if isinstance(self.target, str) else self.target


@dataclass(frozen=True)
class Ignore:
    """Leave out a tensor that has no place in the model.

    Args:
        pattern: regular expression for a whole released name.
        reason: why the model does not need the tensor, for the report.
    """

    pattern: str
    reason: str


Rule = Rename | Ignore


@dataclass(frozen=True)
class Conversion:
    """Describe the released checkpoints of one system.

    Args:
        rules: returns the table of names.
        infer_config: called as `infer_config(state_dict, **settings)` with released names and tensors. Reads the sizes
            from the shapes and returns the configuration, in which the settings take precedence; `id2label` is one of
            them. Raises a `ValueError` if the tensors belong to another system.
        model_class: class of the converted model. Its configuration has `num_queries`, `num_labels` and a
            `backbone_config`, or a `detector_config` that has one.
        short_sides: `model_type` of a backbone -> short side of videos in pixels, as published.
        assumed_fields: fields that change the results of the model, but show in no tensor. The report lists the values
            that the converter assumes for them.
        note: sentence for the report of every checkpoint of the system.
    """

    rules: Callable[[], list[Rule]]
    infer_config: Callable[..., PreTrainedConfig]
    model_class: type[PreTrainedModel]
    short_sides: Mapping[str, int]
    assumed_fields: tuple[str, ...] = ()
    note: str | None = None


def prefixed(rules: list[Rule], prefix: str) -> list[Rule]:
    """Return the rules for a model that holds the model of `rules` as a part.

    Args:
        rules: table of names.
        prefix: name of the part with a dot, such as "detector.".
    """
    return [
        replace(rule, target=tuple(prefix + target for target in rule.targets)) if isinstance(rule, Rename) else rule
        for rule in rules
    ]


def packed_attention(source: str, target: str) -> list[Rule]:
    """Return the rules that split the packed projection of an `nn.MultiheadAttention`.

    Args:
        source: regular expression for the released name of the attention.
        target: name of the attention in the model, which has `q_proj`, `k_proj`, `v_proj` and `out_proj`.
    """
    parameter = rf"\g<{count_groups(source) + 1}>"
    return [
        Rename(rf"{source}\.in_proj_(weight|bias)", tuple(f"{target}.{part}_proj.{parameter}" for part in "qkv")),
        Rename(rf"{source}\.out_proj\.(weight|bias)", f"{target}.out_proj.{parameter}"),
    ]


def count_groups(pattern: str) -> int:
    """Return the number of groups of a regular expression."""
    return re.compile(pattern).groups


def count_indices(names: Iterable[str], pattern: str) -> int:
    """Count the layers, heads or tasks of a checkpoint by the indices in its names.

    Args:
        names: released names.
        pattern: regular expression for the start of a name; its first group is the index.

    Returns:
        The number of different indices.
    """
    return len({match.group(1) for name in names if (match := re.match(pattern, name))})
