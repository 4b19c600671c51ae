# SPDX-License-Identifier: Apache-2.0
"""The parsers of `transformers-cvis`: help, errors, and answers without importing torch."""

import argparse
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import transformers_cvis
import transformers_cvis_cli
from tests.support.command_line import error_line, run
from transformers_cvis.continual.schedule import SCHEDULES_DIRECTORY
from transformers_cvis.conversion import CONVERSIONS
from transformers_cvis.data import SHAPES, make_moving_shapes, split_ytvis
from transformers_cvis.evaluation import predict_dataset
from transformers_cvis.processing.segmentation import DEFAULT_THRESHOLD
from transformers_cvis.training.recipe import RECIPES_DIRECTORY

COMMANDS = (
    *("segment", "train", "train-continual", "evaluate", "push"),
    *("validate", "import-data", "split-data", "make-data", "convert"),
)
WITHOUT_TORCH = """
import sys
import transformers_cvis_cli
try:
    code = transformers_cvis_cli.main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
foreign = {"torch", "transformers", "transformers_cvis", "numpy", "yaml"} & set(sys.modules)
assert not foreign, foreign
sys.exit(code)
"""


def parser_of(command: str) -> argparse.ArgumentParser:
    return transformers_cvis_cli.build_parser()._subparsers._group_actions[0].choices[command]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run(command, "--help")
    text = capsys.readouterr().out
    assert exit_info.value.code == 0
    assert "example:" in text
    assert text.startswith(f"usage: transformers-cvis {command}")
    undescribed = [action.dest for action in parser_of(command)._actions if not action.help]
    assert not undescribed


def test_the_program_lists_its_commands(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    with pytest.raises(SystemExit) as exit_info:
        run()
    assert exit_info.value.code == 2


@pytest.mark.parametrize(
    ("arguments", "code", "answer"),
    [
        (["--help"], 0, "usage: transformers-cvis [-h]"),
        (["segment", "--help"], 0, "usage: transformers-cvis segment [-h]"),
        (["--version"], 0, f"transformers-cvis {transformers_cvis.__version__}\n"),
        (["segmnt"], 2, "invalid choice: 'segmnt'"),
        (["segment", "a.mp4", "--treshold", "0.5"], 2, "unrecognized arguments: --treshold 0.5"),
        (["--quiet", "segment", "a.mp4", "--verbose"], 2, "--quiet and --verbose exclude each other"),
        (["segment", "absent.mp4"], 1, "error: VIDEO: No file or folder 'absent.mp4' found. Give a video file"),
        (["train", "absent"], 1, "error: No recipe 'absent': give a YAML file or one of genvis_"),
    ],
)
def test_help_and_mistakes_answer_without_torch(arguments, code, answer, tmp_path):
    """A checkout that is not installed works as well: only its source folder is on the path."""
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    environment = {"PYTHONPATH": str(Path(transformers_cvis_cli.__file__).parent)}
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert finished.returncode == code, finished.stderr
    assert answer in finished.stdout + finished.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("segment absent.mp4", "VIDEO: No file or folder 'absent.mp4' found. Give a video file"),
        ("segment {file} --model {absent}", "--model: No folder '{absent}' found. Give the folder of a saved model"),
        ("segment {file} --model ./absent", "--model: No folder './absent' found. Give the folder"),
        ("train absent.yaml", "No recipe 'absent.yaml': give a YAML file or one of "),
        ("train {file} --resume absent", "--resume: No folder 'absent' found. Give auto: continue"),
        ("train-continual absent.yaml", "No schedule 'absent.yaml': give a YAML file or one of "),
        ("evaluate absent --results {file}", "JSON: No file 'absent' found. Give the ground truth"),
        ("evaluate {file} --results absent", "--results: No file 'absent' found. Give the results to measure"),
        ("evaluate {file} --images {file}", "--images: No folder '{file}' found. Give the folder of the frames"),
        ("push absent you/mine", "FOLDER: No folder 'absent' found. Give the folder of a model"),
        ("validate absent", "JSON: No file 'absent' found. Give annotations in YouTube-VIS or COCO format"),
        ("validate {folder}", "JSON: No file '{folder}' found. Give annotations in YouTube-VIS or COCO format"),
        ("validate {file} --images absent", "--images: No folder 'absent' found. Give the folder of the pictures"),
        ("import-data coco absent --out a", "SOURCE: No file or folder 'absent' found. Give a folder of masks, or"),
        ("import-data masks {folder} --frames absent --out a", "--frames: No folder 'absent' found. Give the fold"),
        ("import-data masks . --frames . --classes absent --out a", "--classes: No file 'absent' found. Give the c"),
        ("split-data absent --out a", "JSON: No file 'absent' found. Give annotations in YouTube-VIS format"),
        ("make-data moving-shapes a --backgrounds absent", "--backgrounds: No folder 'absent' found. Give pictures"),
        ("convert absent --system vita --out a", "SOURCE: No file 'absent' found. Give a checkpoint: .pth"),
        ("convert {file} --system vita --out a --classes absent", "--classes: No file 'absent' found. Give class n"),
    ],
)
def test_an_input_that_is_missing_is_named_before_the_work(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"{name} is imported"))
    places = {"file": tmp_path / "a.json", "folder": tmp_path, "absent": tmp_path / "absent"}
    places["file"].write_text("{}")
    assert run(*(word.format(**places) for word in arguments.split())) == 1
    assert message.format(**places) in error_line(capsys)
    assert list(tmp_path.iterdir()) == [places["file"]]


@pytest.mark.parametrize(
    "arguments",
    [
        "segment https://example.org/a.mp4?token=1 file:///a%20b.mp4 RTSP://camera/1",
        "segment {folder} --model gpt2",
        "segment {folder} --model facebook/mask2former-swin-tiny-coco-instance",
        "segment {folder} --model {folder}",
        "train vita_moving_shapes --resume restart",
        "train --list",
        "train-continual hvpl_moving_shapes",
        "train-continual --list",
        "validate /dev/null",
    ],
)
def test_an_input_that_may_exist_passes(arguments, tmp_path):
    words = [word.format(folder=tmp_path) for word in arguments.split()]
    options = transformers_cvis_cli.build_parser().parse_args(words)
    if options.check is not None:
        options.check(options)
    transformers_cvis_cli.check_inputs(options)


def test_choices_and_defaults_are_those_of_the_package():
    """The parsers repeat them because they do not import the package."""
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in transformers_cvis_cli.DTYPES)
    assert tuple(CONVERSIONS) == transformers_cvis_cli.CONVERTED_SYSTEMS
    assert (transformers_cvis_cli.RECIPES, transformers_cvis_cli.SCHEDULES) == (RECIPES_DIRECTORY, SCHEDULES_DIRECTORY)
    assert parser_of("segment").get_default("threshold") == DEFAULT_THRESHOLD
    assert parser_of("evaluate").get_default("top_k") == inspect.signature(predict_dataset).parameters["top_k"].default
    split = inspect.signature(split_ytvis).parameters
    for name in ("test_share", "seed"):
        assert parser_of("split-data").get_default(name) == split[name].default
    generate = inspect.signature(make_moving_shapes).parameters
    names = {"train_videos": "num_train_videos", "valid_videos": "num_valid_videos", "frames": "num_frames"}
    for option, name in {**names, "size": "size", "seed": "seed"}.items():
        assert parser_of("make-data").get_default(option) == generate[name].default
    assert f"the first N of {len(SHAPES)}" in parser_of("make-data").format_help()


def test_a_system_that_was_registered_can_be_converted(monkeypatch):
    monkeypatch.setitem(CONVERSIONS, "toy", CONVERSIONS["vita"])
    options = parser_of("convert").parse_args(["toy.pth", "--system", "toy", "--out", "toy"])
    assert options.system == "toy"


@pytest.mark.parametrize("flag", ["quiet", "verbose", "debug"])
def test_flags_stand_before_or_after_the_command(flag):
    parser = transformers_cvis_cli.build_parser()
    for words in ([f"--{flag}", "validate", "a.json"], ["validate", "a.json", f"--{flag}"]):
        assert getattr(parser.parse_args(words), flag) is True
    assert getattr(parser.parse_args(["validate", "a.json"]), flag) is False


@pytest.mark.parametrize("module", ["transformers_cvis", "transformers_cvis.cli"])
def test_the_package_runs_as_the_program(module, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"images": [], "categories": [], "annotations": []}))
    command = [sys.executable, "-m", module, "validate", "a.json"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 1, finished.stderr
    assert finished.stdout.startswith("'images'"), finished.stderr
