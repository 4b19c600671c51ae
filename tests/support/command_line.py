# SPDX-License-Identifier: Apache-2.0
"""Run the program `transformers-cvis` in the process of the tests."""

from transformers_cvis_cli import main


def run(*arguments: object) -> int:
    """Run a command and return its exit code."""
    return main([str(argument) for argument in arguments])


def error_line(capsys) -> str:
    """Return the only error line; fail on several or on a traceback."""
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("transformers-cvis: error: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error, error
    return lines[0]
