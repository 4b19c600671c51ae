# SPDX-License-Identifier: Apache-2.0
"""Messages and progress follow the logger of transformers."""

import ast
import subprocess
import sys
from logging import Handler
from pathlib import Path

import pytest
from transformers.utils import logging

import transformers_cvis
from transformers_cvis import logs

SOURCE = Path(transformers_cvis.__file__).parent


def test_messages_follow_the_verbosity_of_transformers():
    logger, before = logging.get_logger("transformers_cvis.training.build"), logging.get_verbosity()
    try:
        for level in (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG):
            logging.set_verbosity(level)
            assert logger.getEffectiveLevel() == level
    finally:
        logging.set_verbosity(before)


def test_messages_go_to_the_handlers_of_transformers():
    seen = Handler()
    seen.emit = lambda record: messages.append(record.getMessage())
    messages: list[str] = []
    logging.add_handler(seen)
    try:
        logging.get_logger("transformers_cvis.training.build").warning("a warning")
    finally:
        logging.remove_handler(seen)
    assert messages == ["a warning"]


def test_messages_follow_the_environment():
    code = "import transformers_cvis.logs as logs; logs.logger.info('a message'); logs.logger.debug('nothing')"
    environment = {"PYTHONPATH": str(SOURCE.parent), "TRANSFORMERS_VERBOSITY": "info"}
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.endswith("a message\n"), finished.stderr


def test_every_message_goes_through_this_logger():
    wrong = []
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import) and any(alias.name in ("logging", "tqdm") for alias in node.names):
                wrong.append(f"{path}:{node.lineno} imports {node.names[0].name}")
            if isinstance(node, ast.ImportFrom) and node.module == "accelerate.logging":
                wrong.append(f"{path}:{node.lineno} imports the logger of accelerate")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("warnings.warn", "tqdm.write"):
                wrong.append(f"{path}:{node.lineno} calls {ast.unparse(node.func)}")
    assert not wrong, "\n".join(wrong)


def test_a_bar_is_drawn_in_a_terminal(terminal):
    assert list(logs.progress_bar(range(3), desc="count", unit="step")) == [0, 1, 2]
    assert "count: 100%" in terminal.readouterr().err


@pytest.mark.parametrize("silence", ["disable", "transformers"])
def test_a_bar_can_be_silenced(terminal, monkeypatch, silence):
    if silence == "transformers":
        monkeypatch.setattr("transformers.utils.logging._tqdm_active", False)  # as by `disable_progress_bar`
    bar = logs.progress_bar(range(3), disable=silence == "disable", desc="count")
    assert list(bar) == [0, 1, 2]
    assert terminal.readouterr().err == ""


def test_lines_now_and_then_stand_in_for_a_bar(capsys, caplog, monkeypatch):
    clock = iter(range(0, 100, 20))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, logger="transformers_cvis"):
        progress = logs.progress_bar(total=10, initial=2, desc="train vita", unit="step")
        for step in range(4):
            progress.set_postfix({"loss": f"{step}.5"}, refresh=False)
            progress.update()
        progress.close()
    assert caplog.messages == [
        "train vita: 4 of 10 steps, 40 s, loss 1.5",
        "train vita: 6 of 10 steps, 80 s, loss 3.5",
    ]
    assert capsys.readouterr().err == ""


def test_lines_of_an_iterable_without_a_length(caplog, monkeypatch):
    monkeypatch.setattr(logs, "SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO, logger="transformers_cvis"):
        assert list(logs.progress_bar(iter("ab"), desc="camera", unit="frame")) == ["a", "b"]
    assert caplog.messages == ["camera: 1 frames, 0 s", "camera: 2 frames, 0 s"]


def test_only_the_main_process_shows_messages():
    package = logging.get_logger("transformers_cvis")
    try:
        for is_main_process in (True, False):
            logs.silence_other_processes(is_main_process)
            assert logs.logger.isEnabledFor(logging.WARNING) is is_main_process
    finally:
        package.setLevel(logging.NOTSET)
