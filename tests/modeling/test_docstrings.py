# SPDX-License-Identifier: Apache-2.0
"""Docstrings of configurations, outputs and `forward`: complete, in one form, with the defaults that hold."""

import ast
import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
from pathlib import Path

import pytest
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from transformers_cvis import modeling
from transformers_cvis.modeling.docstrings import document_config, document_forward, document_output, split_docstring
from transformers_cvis.modeling.minvis import MinVisConfig
from transformers_cvis.modeling.modeling_base import CvisPreTrainedModel

MODULES = [
    importlib.import_module(info.name) for info in pkgutil.walk_packages(modeling.__path__, f"{modeling.__name__}.")
]


def own_classes(base: type) -> list[type]:
    classes = {
        value
        for module in MODULES
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, base) and value.__module__.startswith(modeling.__name__)
    }
    return sorted(classes, key=lambda cls: cls.__name__)


CONFIGS = own_classes(PreTrainedConfig)
OUTPUTS = own_classes(ModelOutput)
MODELS = [model for model in own_classes(CvisPreTrainedModel) if model.forward is not CvisPreTrainedModel.forward]
FIELDS_OF_THE_LIBRARY = {field.name for field in dataclasses.fields(PreTrainedConfig)}


def written_entries(cls: type) -> dict:
    """Entries of the docstring in the source, before the decorator completes it."""
    tree = ast.parse(Path(inspect.getsourcefile(cls)).read_text())
    (node,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__]
    return split_docstring(ast.get_docstring(node)).entries


def default_of(header: str) -> str | None:
    found = re.search(r", defaults to `(.*)`$", header)
    return found and found.group(1)


def test_all_systems_are_covered():
    assert len(CONFIGS) >= 11
    assert len(OUTPUTS) == 2
    assert len(MODELS) >= 12


@pytest.mark.parametrize("config_class", CONFIGS)
def test_a_configuration_documents_every_field_once_with_its_default(config_class):
    entries = split_docstring(config_class.__doc__).entries
    for field in dataclasses.fields(config_class):
        if field.name in FIELDS_OF_THE_LIBRARY:
            continue
        header, text = entries[field.name]
        assert config_class.__doc__.count(f"\n    {field.name} (`") == 1
        assert ", *optional*" in header
        assert text
        default = field.metadata["switch"]["default"] if "switch" in field.metadata else field.default
        if default is not None:
            assert default_of(header) == (json.dumps(default) if isinstance(default, str) else repr(default))


@pytest.mark.parametrize("config_class", CONFIGS)
def test_defaults_that_are_written_in_the_source_hold(config_class):
    entries, config = split_docstring(config_class.__doc__).entries, config_class()
    for name, (header, _) in written_entries(config_class).items():
        assert header == entries[name].header
        if default_of(header) is not None:
            assert ast.literal_eval(default_of(header)) == getattr(config, name)


@pytest.mark.parametrize("output_class", OUTPUTS)
def test_an_output_documents_every_field_once(output_class):
    entries = split_docstring(output_class.__doc__).entries
    assert list(entries) == [field.name for field in dataclasses.fields(output_class)]
    for name in entries:
        assert len(re.findall(rf"^ *{name} \(`", output_class.__doc__, re.MULTILINE)) == 1


@pytest.mark.parametrize("model_class", MODELS)
def test_a_forward_documents_its_arguments_and_has_an_example(model_class):
    docstring = inspect.getdoc(model_class.forward)
    parameters = [name for name in inspect.signature(model_class.forward).parameters if name != "self"]
    parts = split_docstring(docstring)
    assert parts.intro
    assert list(parts.entries) == parameters
    assert all(text for _, text in parts.entries.values())
    for section in ("Returns:", "Raises:", "Example:\n```python\n>>> "):
        assert f"\n{section}" in docstring
    assert docstring.count(">>> import torch") == 1


@pytest.mark.parametrize("member", [*CONFIGS, *OUTPUTS, *(model.forward for model in MODELS)])
def test_docstrings_hold_no_text_for_models_of_the_library(member):
    assert not re.search(r"None model|\[`None`\]|vocab_size|language modeling|fill_type", member.__doc__)


def documented(cls: type) -> type:
    cls.__qualname__ = cls.__name__  # `auto_docstring` takes a class inside another object for a method
    return document_config(cls)


def test_a_subclass_shows_its_own_default_of_an_inherited_field(capsys):
    @documented
    @strict
    class MyConfig(MinVisConfig):
        """Configuration of a test.

        Args:
            strength (`float`, *optional*, defaults to `0.5`):
                A field of its own.
        """

        detector_chunk_size: int = 3
        strength: float = 0.5

    entries, inherited = split_docstring(MyConfig.__doc__).entries, split_docstring(MinVisConfig.__doc__).entries
    assert entries["detector_chunk_size"].header == "`int`, *optional*, defaults to `3`"
    assert entries["detector_chunk_size"].text == inherited["detector_chunk_size"].text
    assert entries["strength"].text == "A field of its own."
    assert capsys.readouterr().out == ""


def test_a_field_without_a_text_is_listed_silently(capsys):
    @documented
    @strict
    class MyConfig(MinVisConfig):
        """Configuration of a test."""

        unknown: int = 3

    assert "    unknown (`Any`, *optional*, defaults to `3`):" in MyConfig.__doc__
    assert capsys.readouterr().out == ""


def test_decorators_accept_what_has_no_docstring():
    class Undocumented:
        pass

    def forward(self):
        pass

    assert document_config(Undocumented) is Undocumented
    assert document_output(Undocumented) is Undocumented
    assert document_forward()(forward) is forward
