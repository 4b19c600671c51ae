# SPDX-License-Identifier: Apache-2.0
"""The models that ship with the package find the objects of `make demo`."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

import transformers_cvis_cli as cli
from transformers_cvis import AutoModelForVideoInstanceSegmentation, demo_video_path, task_adapter_path
from transformers_cvis.assets import ASSETS, demo_ground_truth_path
from transformers_cvis.evaluation import evaluate_ytvis
from transformers_cvis.hub.owned_files import read_files_of_report
from transformers_cvis.training import Recipe

EXAMPLE = Path(__file__).parents[1] / "examples" / "switch_tasks.py"


def test_the_embedded_model_finds_the_objects_of_the_demo_video(tmp_path):
    assert cli.main(["segment", str(demo_video_path()), "--out", str(tmp_path), "--no-video"]) == 0
    assert evaluate_ytvis(demo_ground_truth_path(), tmp_path / "results.json").summary["AP50"] > 0.6


@pytest.mark.parametrize("number", [0, 1, 2])
def test_each_task_that_ships_loads_by_its_folder(number):
    model = AutoModelForVideoInstanceSegmentation.from_pretrained(task_adapter_path(number))
    assert model.config.num_labels == 4 + 2 * number
    assert model.active_task_adapters == [f"task-{task}" for task in range(1, number + 1)]


def test_a_task_that_does_not_ship_is_named():
    with pytest.raises(FileNotFoundError, match="task-3.*is missing.*continual_moving_shapes.py --ship"):
        task_adapter_path(3)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_recipe_of_each_task_can_be_read(number):
    summary = json.loads((task_adapter_path(number) / "training_summary.json").read_text())
    assert Recipe.from_dict(summary["recipe"]).max_steps == summary["steps"]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_card_of_each_task_lists_its_measurements(number):
    folder = task_adapter_path(number)
    card = ModelCard.load(folder / "README.md")
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    report = json.loads((folder / "report.json").read_text())
    assert len(report["evaluations"]) == number + 1
    for name in ("AP", "AP50", "AR1"):
        assert measured[name] == pytest.approx(100 * report["evaluations"][-1]["overall"]["all"][name], abs=0.005)
    assert (folder / "report.md").read_text().strip() in card.text
    assert f"On data/valid.json, over all 8 classes, {4 + 2 * number} of them learnt." in card.text
    assert f"from_pretrained(transformers_cvis.task_adapter_path({number}))" in card.text
    title = f"hvpl-moving-shapes after task-{number}" if number else "hvpl-moving-shapes"
    assert card.data.model_name == title
    assert f"# {title}\n" in card.content
    assert "\ntransformers-cvis train-continual hvpl_moving_shapes " in card.text
    if number:
        assert "added to the base, ../task-0. " in card.text
        assert (folder / "../task-0/model.safetensors").is_file()


def test_cards_do_not_name_a_package_index():
    cards = list(ASSETS.rglob("README.md"))
    assert len(cards) == 4
    assert not [path for path in cards if "pip install" in path.read_text()]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_reports_list_their_files(number):
    folder = task_adapter_path(number)
    files = read_files_of_report(folder / "report.json")
    assert {*files} == {"report.json", "report.md"} | {path.name for path in folder.glob("*.png")}


def test_base_and_adapters_are_small():
    files = [path for path in task_adapter_path().parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 6 * 2**20


def test_switching_tasks_adds_categories_and_keeps_old_tracks(tmp_path):
    command = [sys.executable, str(EXAMPLE), "--out", str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    header, *rows = (re.split(r"  +", line) for line in printed if "Written" not in line)
    assert len(header) == 4
    objects = [row for row in rows if row[0] != "other tracks"]
    base_classes = re.findall(r"\w+", header[1])[1:]
    old = [row for row in objects if row[0] in base_classes]
    new = [row for row in objects if row[0] not in base_classes]
    assert old
    assert new
    for row in old:
        assert all(found.startswith(row[0]) for found in row[1:])
    for row in new:
        assert not row[1].startswith(row[0])
        assert row[-1].startswith(row[0])
    assert Image.open(tmp_path / "switch_tasks.png").size[0] > 600
