# SPDX-License-Identifier: Apache-2.0
"""`--quiet`, `--verbose` and progress, of every command."""

import os
import subprocess
import sys

import pytest
from transformers.utils import logging

from tests.support.command_line import run

logger = logging.get_logger("transformers_cvis.cli.data")
library = logging.get_logger("transformers.modeling_utils")


@pytest.fixture
def talkative(monkeypatch, tmp_path):
    """Write a file with which `validate` logs at every level, through the package and transformers; return its path."""

    def validate_annotations(*arguments, **settings):
        for name, source in (("package", logger), ("library", library)):
            source.info(f"{name} info")
            source.warning(f"{name} warning")
            source.error(f"{name} error")
        return []

    monkeypatch.setattr("transformers_cvis.cli.data.validate_annotations", validate_annotations)
    path = tmp_path / "a.json"
    path.write_text("{}")
    return path


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ([], ["package info", "warning: package warning", "warning: library warning"]),
        (["--quiet"], []),
        (["--verbose"], ["package info", "warning: package warning", "library info", "warning: library warning"]),
    ],
)
def test_flags_choose_the_messages(talkative, capsys, flags, shown):
    levels = logging.get_verbosity(), logging.get_logger("transformers_cvis").level
    assert run(*flags, "validate", talkative) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{talkative}: no problem found\n"
    assert sorted(captured.err.splitlines()) == sorted([*shown, "error: package error", "error: library error"])
    assert (logging.get_verbosity(), logging.get_logger("transformers_cvis").level) == levels


def test_verbosity_set_by_the_user_holds_for_the_package(talkative, capsys):
    logging.set_verbosity_error()
    try:
        assert run("validate", talkative) == 0
    finally:
        logging.set_verbosity_warning()
    assert capsys.readouterr().err.splitlines() == ["error: package error", "error: library error"]


@pytest.mark.parametrize(("flags", "drawn"), [([], True), (["--quiet"], False)])
def test_quiet_draws_no_progress_bar(terminal, tmp_path, flags, drawn):
    arguments = ("moving-shapes", tmp_path / "data", "--train-videos", 1, "--valid-videos", 1, "--frames", 2)
    assert run("make-data", *arguments, *flags) == 0
    assert ("moving shapes: train: 100%" in terminal.readouterr().err) is drawn


def test_nothing_is_drawn_into_a_pipe(tmp_path, model, video):
    # The tests disable the bars of the Hub client, and with them those of transformers.
    variables = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    command = [sys.executable, "-m", "transformers_cvis", "segment", str(video), "--model", str(model), "--out", "out"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=variables)
    assert finished.returncode == 0
    assert finished.stderr.splitlines() == ["drawing valid_00000.mp4 and valid_00000.png"]
    assert "Results: out/results.json" in finished.stdout
