# SPDX-License-Identifier: Apache-2.0
"""`transformers-cvis train` and `transformers-cvis train-continual`."""

import json
from pathlib import Path

import pytest

from tests.support.command_line import error_line, run
from tests.support.tiny_schedule import tiny_schedule
from transformers_cvis.continual.schedule import SCHEDULES_DIRECTORY
from transformers_cvis.data import make_moving_shapes
from transformers_cvis.training.recipe import RECIPES_DIRECTORY


def test_a_schedule_from_the_command_line(tmp_path, capsys, loopback_hub):
    """Train task after task, segment with the folder of a task, push base and task."""
    data = make_moving_shapes(tmp_path / "data", 4, 1, num_frames=3, size=(48, 64), seed=1, categories=["ring", "star"])
    schedule = tiny_schedule(data, classes={"split": "1-1"}).to_dict()
    (tmp_path / "mine.json").write_text(json.dumps(schedule))  # JSON is YAML as well
    runs = tmp_path / "runs"
    overrides = ("--set", "recipe.max_steps=1")
    assert run("train-continual", tmp_path / "mine.json", "--out", runs, *overrides) == 0
    assert "| after task | classes | AP |" in capsys.readouterr().out
    assert run("train-continual", tmp_path / "mine.json", "--out", runs, "--set", "seed=1") == 1
    assert "holds the run of another schedule: it differs in recipe, seed" in error_line(capsys)
    video = data / "JPEGImages" / "valid_00000"
    out = tmp_path / "out"
    assert run("segment", video, "--model", runs / "task-1", "--threshold", 0, "--no-video", "--out", out) == 0
    found = json.loads((out / "results.json").read_text())
    assert [category["name"] for category in found["categories"]] == ["ring", "star"]
    assert run("push", runs / "task-1", "tester/mine") == 1
    assert "push the base there first" in error_line(capsys)
    assert run("push", runs / "task-0", "tester/mine") == 0
    assert run("push", runs / "task-1", "tester/mine") == 0
    repo = loopback_hub.repos["model", "tester/mine"]
    assert set(repo.branches) == {"main", "task-1"}
    assert "report.json" in repo.files("main")
    assert "report.json" in repo.files("task-1")


def listed(capsys, folder: Path) -> dict[str, str]:
    """Return the lines of `--list`, one for each file; the folder is printed on a line of its own."""
    out, error = capsys.readouterr()
    descriptions = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert list(descriptions) == sorted(path.stem for path in folder.glob("*.yaml"))
    assert all(description[0].isupper() and len(description) <= 100 for description in descriptions.values())
    assert f"The files are in {folder}" in error
    return descriptions


def test_train_continual_names_its_schedules_and_its_mistakes(tmp_path, capsys):
    assert run("train-continual", "--list") == 0
    assert listed(capsys, SCHEDULES_DIRECTORY)["hvpl_r50_ytvis2019_20-2"] == (
        "HVPL with ResNet-50 on YouTube-VIS 2019, 20-2 (10 more tasks): the published hyper-parameters"
    )
    assert run("train-continual", "absent", "--out", tmp_path) == 1
    assert "No schedule 'absent': give a YAML file or one of " in error_line(capsys)
    assert run("train-continual") == 1
    assert "Name a schedule" in error_line(capsys)


def test_train_names_its_recipes_and_its_mistakes(tmp_path, capsys):
    assert run("train", "--list") == 0
    descriptions = listed(capsys, RECIPES_DIRECTORY)
    assert descriptions["vita_r50_ovis"] == "VITA with ResNet-50 on OVIS: the published hyper-parameters"
    assert descriptions["vita_moving_shapes"] == "The first stage of the small model that ships with the package"
    assert run("train", "absent", "--out", tmp_path) == 1
    assert "No recipe 'absent'" in error_line(capsys)
    assert run("train") == 1
    assert "Name a recipe" in error_line(capsys)


def test_the_first_example_of_train_works_in_an_empty_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers_cvis.logs.SECONDS_BETWEEN_LINES", 0.0)
    with pytest.raises(SystemExit):
        run("train", "--help")
    examples = [line.split() for line in capsys.readouterr().out.partition("example:")[2].strip().splitlines()]
    smaller = {
        "make-data": ["--train-videos", 2, "--valid-videos", 1, "--frames", 4],
        "train": ["--set", "max_steps=1", "--set", "batch_size=1", "--set", "data.num_workers=0"],
    }
    assert [words[:2] for words in examples[:2]] == [["transformers-cvis", command] for command in smaller]
    for _, command, *arguments in examples[:2]:
        assert run(command, *arguments, *smaller[command]) == 0
    assert (tmp_path / "vita_moving_shapes" / "model.safetensors").is_file()
    assert "\ntrain vita: 1 of 1 steps, " in capsys.readouterr().err  # one line, since a progress bar cannot be drawn
