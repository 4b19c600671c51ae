# SPDX-License-Identifier: Apache-2.0
"""Examples in docstrings run unchanged."""

import doctest
import importlib
import pkgutil

import pytest

import transformers_cvis

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(transformers_cvis.__path__, f"{transformers_cvis.__name__}.")
    if not info.name.split(".")[-1].startswith("__")
)


def examples(module_name: str) -> list[doctest.DocTest]:
    module = importlib.import_module(module_name)
    return [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]


@pytest.mark.parametrize("module_name", MODULES)
def test_examples_of_a_module_run(module_name):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for test in examples(module_name):
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


def test_examples_exist():
    assert sum(bool(examples(name)) for name in MODULES) >= 5
