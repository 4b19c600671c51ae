# SPDX-License-Identifier: Apache-2.0
"""Docstrings of configurations, outputs and `forward`: the shared texts, and the decorators that fill them in.

`transformers.utils.auto_docstring` renders them. It knows the fields and arguments of the models in transformers only,
so the decorators pass it an entry for each of ours:

- `document_config` adds the fields that a class inherits, and writes the default that each field has in this class;
- `document_output` takes the docstring of the class as it is;
- `document_forward` adds the shared entries of `FORWARD_ARGUMENTS`.

Entries have one form in the whole folder::

    name (`type`, *optional*, defaults to `value`):
        Text.
"""

import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from transformers import PreTrainedConfig
from transformers.utils import auto_docstring

Documented = TypeVar("Documented")


class Entry(NamedTuple):
    """One documented field or argument."""

    header: str
    """Type, shape, *optional* and default: the content of the round brackets."""
    text: str
    """Description, without its indent."""


class Docstring(NamedTuple):
    """Parts of a docstring."""

    intro: str
    entries: dict[str, Entry]
    rest: str
    """`Returns:`, `Raises:` and `Example:`."""


# Fields that configurations of different families declare.

LOSS_FIELDS = {
    "no_object_weight": Entry("`float`", "Weight of the no-object class in the classification loss."),
    "class_weight": Entry("`float`", "Weight of the classification loss, in matching and training."),
    "mask_weight": Entry("`float`", "Weight of the cross entropy of masks, in matching and training."),
    "dice_weight": Entry("`float`", "Weight of the dice loss of masks, in matching and training."),
    "train_num_points": Entry("`int`", "Points per mask in matching and mask losses."),
    "oversample_ratio": Entry("`float`", "Candidate points per point of a mask loss."),
    "importance_sample_ratio": Entry(
        "`float`", "Share of the points of a mask loss taken where the mask is most uncertain."
    ),
}

TASK_FIELDS = {
    "task_class_counts": Entry(
        "`list[int]`",
        "Classes of each task, the base first; `id2label` lists them in this order. Unless given, all classes are one "
        "task.",
    ),
    "task_prompt_counts": Entry("`list[int]`, defaults to `[]`", "Prompts of each task after the base."),
    "calibration_deltas": Entry(
        "`list[float]`",
        "One number for each task, see `calibrate_class_logits`; cut to the number of tasks, or continued with the "
        "last number.",
    ),
    "deep_class_head": Entry("`bool`", "Give class heads three layers instead of one."),
}

CLASS_TARGETS_FIELD = {
    "class_targets": Entry(
        '`"visible"` or `"released"`',
        "Class that an object has as a target: its own if it is visible in a frame of the clip; or, as in released "
        "code, its own if it is visible in the last frame, and no-object otherwise, although its masks count. Choose "
        '"released" to repeat published training.',
    )
}

SHARED_FIELDS = {**LOSS_FIELDS, **TASK_FIELDS, **CLASS_TARGETS_FIELD}

# Arguments of `forward` of the video models. An empty header is filled from the signature.
FORWARD_ARGUMENTS = {
    "pixel_values_videos": Entry(
        "`torch.Tensor` of shape `(B, T, 3, H, W)`", "Normalised frames; `H` and `W` are multiples of 32."
    ),
    "pixel_mask": Entry(
        "`torch.Tensor` of shape `(B, H, W)`, *optional*",
        "1 where a video is, 0 where it is padded. At inference, each video of a batch then gives the result that it "
        "gives alone. Training ignores it.",
    ),
    "state": Entry("", ""),
    "labels": Entry(
        "`list[dict[str, torch.Tensor]]`, *optional*",
        "One dict per video: `class_labels` `(M,)` long; `ids` `(M, T)` long, -1 where an object is absent; `masks` "
        "`(M, T, H, W)`. The model then returns `loss` and `loss_dict` instead of predictions.",
    ),
    "output_embeddings": Entry("`bool`, *optional*, defaults to `False`", "Whether to return the embeddings as well:"),
    "output_hidden_states": Entry("`bool`, *optional*", "Whether to return `hidden_states` as well:"),
    "output_attentions": Entry(
        "`bool`, *optional*",
        "Not supported: True raises a ValueError, as no layer has one tensor of attention weights.",
    ),
    "original_sizes": Entry(
        "`torch.Tensor` of shape `(B, 2)`, *optional*",
        "Height and width of the videos before the resize, as the video processor returns them. The output passes them "
        "on to the post-processing.",
    ),
}

NO_STATE = "Must stay None: the model reads whole videos and carries nothing from clip to clip."
PREVIOUS_STATE = "`state` of the output for the previous clip; None for the first clip."


def document_config(config_class: type[Documented]) -> type[Documented]:
    """Complete the docstring of a configuration: own and inherited fields, each with its default in this class.

    The docstring describes own fields under `Args:`. A field that it leaves out has the text of `SHARED_FIELDS` if the
    class declares it, else the text of the base class.

    Args:
        config_class: A configuration class, after `strict` has made it a dataclass.

    Returns:
        The same class.
    """
    if not config_class.__doc__:  # python -OO
        return config_class
    own = split_docstring(config_class.__doc__)
    entries: dict[str, Entry] = {}
    for base in reversed(config_class.__mro__[1:]):
        if base.__module__.startswith("transformers.models."):
            entries |= split_docstring(base.__doc__ or "").entries
            entries |= {name: entry for name, entry in SHARED_FIELDS.items() if name in entries}
        elif base.__module__.startswith(f"{__name__.split('.')[0]}."):
            entries |= split_docstring(base.__doc__ or "").entries
    declared = inspect.get_annotations(config_class)
    entries |= {name: entry for name, entry in SHARED_FIELDS.items() if name in declared} | own.entries

    arguments = {}
    known = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    for field in dataclasses.fields(config_class):
        if field.name not in known:
            # Without a text: a field that a later version of transformers adds.
            entry = entries.get(field.name, Entry("`Any`", "See [`~transformers.Mask2FormerConfig`]."))
            arguments[field.name] = entry._replace(header=_config_header(entry, field))
    return auto_docstring(config_class, custom_intro=own.intro, custom_args=_joined(arguments, own.rest))


def document_output(output_class: type[Documented]) -> type[Documented]:
    """Render the docstring of an output class, which describes each field under `Args:`.

    Args:
        output_class: A dataclass that derives from `ModelOutput`.

    Returns:
        The same class.
    """
    if not output_class.__doc__:  # python -OO
        return output_class
    own = split_docstring(output_class.__doc__)
    auto_docstring(output_class, custom_intro=own.intro, custom_args=_joined(own.entries, own.rest))
    # Version 5.10 of transformers lists the fields twice.
    parts = re.split(rf"^(?= *{next(iter(own.entries))} \()", output_class.__doc__, flags=re.MULTILINE)
    output_class.__doc__ = "".join(parts[:2])
    return output_class


def document_forward(**details: str) -> Callable[[Documented], Documented]:
    """Return a decorator that completes the docstring of a `forward`.

    The docstring begins with a summary and ends with `Returns:`, `Raises:` and `Example:`. Arguments that it does not
    describe itself have the entries of `FORWARD_ARGUMENTS`.

    Args:
        details: For an argument by name, a text that continues the shared one.

    Returns:
        The decorator. Put it below `can_return_tuple`.
    """

    def decorate(forward: Documented) -> Documented:
        if not forward.__doc__:  # python -OO
            return forward
        own = split_docstring(forward.__doc__)
        arguments = {}
        for name, parameter in inspect.signature(forward).parameters.items():
            if name in own.entries:
                arguments[name] = own.entries[name]
            elif name in FORWARD_ARGUMENTS:
                header, text = FORWARD_ARGUMENTS[name]
                header = header or f"{_type_name(parameter.annotation)}, *optional*"
                arguments[name] = Entry(header, f"{text} {details.get(name, '')}".strip())
        forward.__doc__ = None  # `auto_docstring` would append it
        auto_docstring(forward, custom_intro=own.intro, custom_args=_joined(arguments, own.rest))
        forward.__doc__ = re.sub(r"\n+( *)(Args|Returns|Raises|Example):\n", r"\n\n\1\2:\n", forward.__doc__)
        return forward

    return decorate


def split_docstring(docstring: str) -> Docstring:
    """Split a docstring into its summary, the entries under `Args:`, and the sections after them."""
    docstring = inspect.cleandoc(docstring)
    sections = re.split(r"^(?=(?:Args|Attributes|Returns|Raises|Examples?):$)", docstring, flags=re.MULTILINE)
    intro, entries, rest = sections[0].strip(), {}, []
    for section in sections[1:]:
        if section.startswith("Args:"):
            body = textwrap.dedent(section.removeprefix("Args:\n"))
            for name, header, text in re.findall(r"^(\w+) \((.+)\):\n((?:[ ]+.*\n?|\n)*)", body, re.MULTILINE):
                entries[name] = Entry(header, textwrap.dedent(text).strip())
        else:
            rest.append(section.strip())
    return Docstring(intro, entries, "\n\n".join(rest))


def _joined(entries: dict[str, Entry], rest: str) -> str:
    """Return entries and the sections after them as `auto_docstring` reads them."""
    lines = []
    for name, (header, text) in entries.items():
        lines += [f"{name} ({header}):", textwrap.indent(textwrap.fill(text, 100, break_on_hyphens=False), "    ")]
    return "\n".join([*lines, "", rest])


def _config_header(entry: Entry, field: dataclasses.Field) -> str:
    """Return the header of a field, with the default that it has in its class."""
    type_name, _, written = entry.header.partition(", defaults to ")
    value = field.metadata["switch"]["default"] if "switch" in field.metadata else field.default
    if value is None or value is dataclasses.MISSING:
        default = f", defaults to {written}" if written else ""
    else:
        shown = json.dumps(value) if isinstance(value, str) else repr(value)
        default = f", defaults to `{shown}`"
    return f"{type_name.removesuffix(', *optional*')}, *optional*{default}"


def _type_name(annotation: Any) -> str:
    """Return the name of the type in `X | None`."""
    for part in getattr(annotation, "__args__", (annotation,)):
        if part not in (None, type(None)):
            return f"`{part.__name__}`"
    return "`None`"


__all__ = ["NO_STATE", "PREVIOUS_STATE", "document_config", "document_forward", "document_output", "split_docstring"]
