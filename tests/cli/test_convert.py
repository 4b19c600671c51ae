# SPDX-License-Identifier: Apache-2.0
"""`transformers-cvis convert`."""

import json
import re
from pathlib import Path

import pytest
import torch

from tests.support.command_line import error_line, run
from tests.support.detectron2_names import ResNet, genvis_names, hvpl_names, mask2former_names, random_state_dict


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """Small checkpoints with the names of research code."""
    folder = tmp_path_factory.mktemp("released")
    for name, shapes in {"genvis": genvis_names, "mask2former": mask2former_names, "hvpl": hvpl_names}.items():
        torch.save({"model": random_state_dict(shapes(ResNet())), "iteration": 3}, folder / f"{name}.pth")
    return folder


def test_convert_takes_class_names_from_a_data_set_and_reports(checkpoints, video, tmp_path, capsys):
    categories = [{"id": 2 * index + 1, "name": f"thing {index}"} for index in reversed(range(5))]
    (tmp_path / "train.json").write_text(json.dumps({"categories": categories}))
    out, report = tmp_path / "out", tmp_path / "report.json"
    arguments = ("convert", checkpoints / "genvis.pth", "--system", "genvis", "--set", "clip_length=3", "--out", out)
    assert run(*arguments, "--classes", tmp_path / "train.json", "--short-side", 64, "--report", report) == 0
    printed = capsys.readouterr().out
    assert "309 tensors mapped, 3 ignored, 0 unknown." in printed
    assert f"Model: {out}" in printed
    config = json.loads((out / "config.json").read_text())
    assert config["clip_length"] == 3
    assert config["id2label"]["0"] == "thing 0"
    content = json.loads(report.read_text())
    assert (content["system"], len(content["mapped"]), len(content["ignored"])) == ("genvis", 309, 3)
    assert content["mapped"]["vita_module.class_embed.weight"] == ["video_head.class_predictor.weight"]
    assert run("segment", video, "--model", out, "--out", tmp_path / "tracks", "--no-video") == 0

    assert run(*arguments) == 1
    assert "exists and is not an empty folder" in error_line(capsys)


def test_convert_lists_mismatches(checkpoints, tmp_path, capsys):
    out, report = tmp_path / "out", tmp_path / "report.json"
    arguments = ("convert", checkpoints / "genvis.pth", "--system", "vita", "--out", out, "--report", report)
    assert run(*arguments) == 1
    captured = capsys.readouterr()
    assert "Unknown, with no place in the model:\n  vita_module.pre_memory_embed_k.weight" in captured.err
    assert "A complete match is --system genvis. Use --allow-missing" in captured.err
    assert len(json.loads(report.read_text())["unknown"]) == 8
    assert captured.out == ""
    assert not out.exists()
    assert run(*arguments, "--allow-missing") == 0
    assert (out / "model.safetensors").is_file()


def test_convert_cuts_a_model_back_to_a_task(checkpoints, tmp_path):
    arguments = ("--system", "hvpl", "--task", 1, "--set", "calibration_deltas=[0.4, 0.5]", "--out", tmp_path / "out")
    assert run("convert", checkpoints / "hvpl.pth", *arguments) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["task_class_counts"] == [3, 2]
    assert config["calibration_deltas"] == [0.4, 0.5]


def test_a_converted_mask2former_segments_videos(checkpoints, video, tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n\ncow\nhen\nfox\n")
    arguments = ("--system", "mask2former", "--classes", tmp_path / "names.txt", "--out", tmp_path / "model")
    assert run("convert", checkpoints / "mask2former.pth", *arguments) == 0
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "mask2former"
    assert run("segment", video, "--model", tmp_path / "model", "--threshold", 0, "--out", tmp_path, "--no-video") == 0
    categories = json.loads((tmp_path / "results.json").read_text())["categories"]
    assert [category["name"] for category in categories] == ["cat", "dog", "cow", "hen", "fox"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.pth"], "SOURCE: No file 'absent.pth' found"),
        (["{file}"], "is not a checkpoint: it begins with b'hello'"),
        (["{genvis}", "--set", "clip_length"], "--set clip_length: must look like KEY=VALUE"),
        (["{genvis}", "--classes", "absent.txt"], "--classes: No file 'absent.txt' found"),
        (["{genvis}", "--classes", "{broken}"], "is not a YouTube-VIS JSON: it needs 'categories'"),
        (["{genvis}", "--out", "{file}/out"], "Cannot write into the folder .*file: Not a directory"),
        (["{genvis}", "--out", "{file}"], "file exists and is not an empty folder"),
        (["{genvis}", "--report", "{file}/report.json"], "Cannot write into the folder .*file"),
        (["{genvis}", "--task", "1"], "has no class heads of tasks"),
    ],
)
def test_convert_fails_in_one_line(arguments, message, checkpoints, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("hello")
    (tmp_path / "broken.json").write_text("{}")
    places = {"file": tmp_path / "file", "broken": tmp_path / "broken.json", "genvis": checkpoints / "genvis.pth"}
    arguments = [argument.format(**places) for argument in arguments]
    assert run("convert", "--system", "genvis", "--out", "out", *arguments) == 1
    assert re.search(message, error_line(capsys))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.json", "file"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.pth", "--out", "out"], "the following arguments are required: --system"),
        (["a.pth", "--system", "genvis"], "the following arguments are required: --out"),
        (["a.pth", "--system", "masktrack", "--out", "out"], "invalid choice: 'masktrack' .*genvis"),
    ],
)
def test_convert_needs_system_and_folder(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run("convert", *arguments)
    assert exit_info.value.code == 2
    assert re.search(message, capsys.readouterr().err)
