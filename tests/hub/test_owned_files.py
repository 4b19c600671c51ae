# SPDX-License-Identifier: Apache-2.0
"""Files of a revision that belong to the package."""

import pytest

from transformers_cvis.hub.owned_files import is_owned, read_files_of_report


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "training_summary.json",
        "task_adapter_config.json",
        "task_adapter_model.safetensors",
        "task_learning_state.safetensors",
        "report.json",
    ],
)
def test_writers_have_declared_their_files(name):
    assert is_owned(name)


@pytest.mark.parametrize("name", ["README.md", "notes.png", ".gitattributes", "config.json", "data/model.txt"])
def test_other_files_are_left_alone(name):
    assert not is_owned(name)
    assert is_owned(name, files_of_report=[name])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": "a.png"}', "null", "no json", '{"files": [1]}'])
def test_a_file_that_is_not_a_report_declares_nothing(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    assert read_files_of_report(tmp_path / "report.json") == []
