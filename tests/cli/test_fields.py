# SPDX-License-Identifier: Apache-2.0
"""`train --fields` and `train-continual --fields`: the reference of recipes and schedules."""

import pytest

from transformers_cvis_cli import main


@pytest.mark.parametrize(
    ("command", "key", "line"),
    [
        ("train", "optimizer.learning_rate", "optimizer.learning_rate: float (required)"),
        ("train-continual", "classes.split", "classes.split: str or null (default null)"),
    ],
)
def test_fields(capsys, command, key, line):
    assert main([command, "--fields"]) == 0
    everything = capsys.readouterr().out
    assert f"\n{line}\n    " in everything
    assert everything.count("\n\n") > 40
    assert main([command, "--fields", key]) == 0
    assert capsys.readouterr().out.startswith(line)
    assert main([command, "--fields", "optimiser"]) == 1
    assert "does not have the field 'optimiser'." in capsys.readouterr().err
