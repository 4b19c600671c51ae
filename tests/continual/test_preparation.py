# SPDX-License-Identifier: Apache-2.0
"""Checks before any training: a schedule, data or a base that do not fit, and what is left in the folder of the run."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.helpers import tiny_genvis
from tests.support.tiny_schedule import TASKS, images_of, tiny_schedule
from transformers_cvis.continual import train_continual
from transformers_cvis.continual.preparation import prepare
from transformers_cvis.data import split_ytvis


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_schedule_does_not_go_on(finished, shapes, monkeypatch):
    monkeypatch.setattr("transformers_cvis.continual.run.Trainer", None)
    with pytest.raises(ValueError, match="holds the run of another schedule: it differs in num_prompts, seed"):
        train_continual(tiny_schedule(shapes, num_prompts=3, seed=1), finished)
    with pytest.raises(ValueError, match="`resume` must be one of 'auto', 'restart', got 'later'"):
        train_continual(tiny_schedule(shapes), finished, resume="later")


def test_a_restart_that_cannot_be_leaves_the_former_run(finished, shapes, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setattr("transformers_cvis.continual.run.Trainer", None)
    for number, wrong in enumerate(("test.json=nowhere.json", "base_model=nowhere", "recipe.precision=fp16")):
        before = files_of(tmp_path / "run")
        with pytest.raises((ValueError, OSError)):
            train_continual(tiny_schedule(shapes), tmp_path / "run", resume="restart", overrides=[wrong])
        assert files_of(tmp_path / "run") == before
        assert before.keys() == files_of(finished).keys()
        with pytest.raises((ValueError, OSError)):
            train_continual(tiny_schedule(shapes), tmp_path / f"new-{number}", resume="restart", overrides=[wrong])
        assert not (tmp_path / f"new-{number}").exists()


def test_more_prompts_than_the_ic_loss_can_compare_are_refused_before_the_base(shapes, tmp_path):
    schedule = tiny_schedule(shapes, "crisp", num_prompts=200)
    with pytest.raises(ValueError, match="200 prompts are too many. Set `config.lambda_ic` to 0"):
        train_continual(schedule, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_split_is_made_again_when_it_is_another(finished, shapes, tmp_path, monkeypatch):
    """What a run that never began has left is not taken for that of another share, seed or data."""
    monkeypatch.setattr("transformers_cvis.continual.run.Trainer", None)
    source = {"json": str(tmp_path / "train.json"), "images": str(shapes / "JPEGImages")}
    shutil.copy(shapes / "train.json", source["json"])
    run = tmp_path / "run"
    split_ytvis(source["json"], run / "splits", 0.2, 0)
    begun = {"train": source, "test": None, "classes": {"tasks": TASKS[:1]}, "base_model": str(finished / "task-0")}
    schedule = tiny_schedule(shapes, **begun, test_share=0.5, seed=7)
    train_continual(schedule, run)
    parts = [json.loads((run / "splits" / f"{name}_split.json").read_text()) for name in ("train", "test")]
    assert {(part["info"]["split"]["test_share"], part["info"]["split"]["seed"]) for part in parts} == {(0.5, 7)}
    results = json.loads((run / "task-0" / "results.json").read_text())
    assert {track["video_id"] for track in results} == {video["id"] for video in parts[1]["videos"]}

    content = json.loads((shapes / "train.json").read_text())
    content["videos"].pop()
    kept = {video["id"] for video in content["videos"]}
    content["annotations"] = [row for row in content["annotations"] if row["video_id"] in kept]
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="train.json has changed since this run held out its test videos .*splits"):
        train_continual(schedule, run)
    assert json.loads((run / "splits" / "test_split.json").read_text()) == parts[1]
    train_continual(schedule, run, resume="restart")
    assert not {video["id"] for video in json.loads((run / "splits" / "train_split.json").read_text())["videos"]} - kept


@pytest.mark.parametrize("exists", [True, False])
def test_nothing_of_a_split_remains_where_something_else_is_wrong(finished, shapes, tmp_path, exists):
    run = tmp_path / "run"
    if exists:
        run.mkdir()
    for changes, message in (
        ({"classes": {"tasks": [["circle"], ["moon"]]}}, "'moon' is not a class"),
        (
            {"base_model": str(finished / "task-0"), "classes": {"tasks": [["circle"], ["ring"]]}},
            "must have the classes of the first task",
        ),
        ({"base_model": "no/such-base"}, "`base_model`: no/such-base: there is no such folder"),
        ({"increment": {"mixed_precision": "fp16"}}, "`mixed_precision: fp16` needs a GPU"),
        ({"test_share": 2.0}, "test_share is 2.0; give a share"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            train_continual(tiny_schedule(shapes, **{"test": None, "test_share": 0.25, **changes}), run)
        assert not (list(run.iterdir()) if exists else run.exists())


def test_images_that_the_mode_keeps_from_a_task_do_not_hinder_it(shapes, tmp_path):
    """All images that show the class of the base show one of a later task, too."""
    images = images_of(shapes, tmp_path / "coco.json", {"disc": "circle", "hoop": "ring"})
    content = json.loads(Path(images["json"]).read_text())
    both = {row["image_id"] for row in content["annotations"] if row["category_id"] == 1}
    both &= {row["image_id"] for row in content["annotations"] if row["category_id"] == 2}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in both]
    Path(images["json"]).write_text(json.dumps(content))
    videos = {"json": str(shapes / "train.json"), "images": str(shapes / "JPEGImages")}
    classes = {"tasks": [["circle"], ["ring"]], "mode": "disjoint"}
    plan = prepare(tiny_schedule(shapes, train=[videos, images], classes=classes), tmp_path / "run", "auto")
    assert both
    assert [len(recipe.data.train) for recipe in plan.recipes] == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "hvlp"}, "`method` must be one of .*'hvpl'.*, got 'hvlp'"),
        ({"classes": {"tasks": [["circle"], ["moon"]]}}, "'moon' is not a class of the training data, which has"),
        ({"classes": {"tasks": [["circle"], ["ring", "circle"]]}}, "`tasks` must name every class once, got 'circle'"),
        (
            {"classes": {"tasks": [["circle", "circle"]]}},
            "`tasks` must name every class once, got 'circle' more than once",
        ),
        ({"classes": {"tasks": [["circle"], []]}}, "`tasks` must have .* every task at least one class"),
        ({"classes": {"split": "3-2"}}, "3-2 does not divide the 4 classes .* evenly: after a base of 3, 1 are left"),
        ({"classes": {"split": "many"}}, "`split` must look like 20-2"),
        ({"classes": {"split": "2-1", "tasks": TASKS}}, "give either `split`, for example 20-2, or `tasks`"),
        ({"test_share": 0.2}, "give either `test`, a source to evaluate on, or `test_share`"),
        ({"num_prompts": 0}, "`num_prompts` must be at least 1 or 'classes', got 0"),
        ({"num_prompts": "many"}, "`num_prompts` must be of type int or 'classes', got 'many'"),
        (
            {"recipe": {"model": {"config": {"num_prompts": "classes"}}}},
            "`recipe.model.config.num_prompts`: .* set its own `num_prompts`",
        ),
        ({"base": {"model": {"config": {"num_prompts": 3}}}}, "`base.model.config.num_prompts`: .* set its own"),
        ({"tasks": {0: {"model": {"config": {"num_prompts": 3}}}}}, "`tasks.0.model.config.num_prompts`: .* its own"),
        ({"tasks": {"one": {"max_steps": 7}}}, "`tasks.one`: .* numbers of tasks .0 is the base. to changes, .*'one'"),
        ({"tasks": {-1: {"max_steps": 7}}}, "`tasks.-1`: .* numbers of tasks"),
        ({"tasks": {1: 7}}, "`tasks.1`: .* to changes, .*, got 1: 7"),
        ({"tasks": {99: {"max_steps": 7}}}, "`tasks.99` is not the number of a task; the tasks are 0 to 2"),
        (
            {"increment": {"model": {"init_from": "x"}}},
            "`increment.model`: later tasks continue with the model",
        ),
        ({"tasks": {"1": {"model": {"config": {}}}}}, "`tasks.1.model`: later tasks continue with the model"),
        ({"recipe": {"seed": 3}}, "`recipe.seed`: this key belongs to the schedule"),
        ({"recipe": {"data": {"train": []}}}, "`recipe.data.train`: the schedule sets this key for every task"),
        ({"increment": {"max_step": 3}}, "task 1 of the schedule: .*unknown key 'max_step'.*Did you mean 'max_steps'"),
        ({"report": {"evaluate_classes": "some"}}, "`evaluate_classes` must be one of .*, got 'some'"),
        ({"gradient_projection": {"threshold": 2}}, "`threshold` must be a share of the energy from 0 to 1, got 2"),
        (
            {"gradient_projection": {"space": "released", "num_clips": 8}},
            "needs 256 frames of every task, but task 0 gives 8 clips of 2 frames, which is 16: set `num_clips` to 128",
        ),
        (
            {"gradient_projection": {"space": "released"}},
            "needs a model with 256 channels .*hidden_dim.*, got 32. Use `space: features`",
        ),
        ({"distillation": {"alpha": 2.0}}, "`distillation`: hvpl does not use it"),
        ({"method": "mib", "gradient_projection": None, "distillation": {"alhpa": 1}}, "unknown key 'alhpa'"),
        ({"sed": 1}, "unknown key 'sed' at the top level. Did you mean 'seed'"),
    ],
)
def test_schedules_that_cannot_be(shapes, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr("transformers_cvis.continual.run.Trainer", None)
    with pytest.raises(ValueError, match=message):
        train_continual(tiny_schedule(shapes, **changes), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("start", ["base_model", "init_from"])
def test_released_directions_on_a_model_of_another_width(finished, shapes, tmp_path, monkeypatch, start):
    monkeypatch.setattr("transformers_cvis.continual.run.Trainer", None)
    base, changes = str(finished / "task-0"), {"gradient_projection": {"space": "released"}}
    changes |= {"base_model": base} if start == "base_model" else {"base": {"model": {"init_from": base}}}
    with pytest.raises(ValueError, match="needs a model with 256 channels .*, got 32"):
        train_continual(tiny_schedule(shapes, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_that_does_not_fit(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers_cvis.continual.run.Trainer", None)
    content = json.loads((shapes / "train.json").read_text())
    ring = next(category["id"] for category in content["categories"] if category["name"] == "ring")
    without = {**content, "annotations": [row for row in content["annotations"] if row["category_id"] != ring]}
    (tmp_path / "without.json").write_text(json.dumps(without))

    def run(part: str, name: str, **changes):
        source = {"json": str(tmp_path / f"{name}.json"), "images": str(shapes / "JPEGImages")}
        train_continual(tiny_schedule(shapes, **{part: source}, **changes), tmp_path / "run")

    with pytest.raises(ValueError, match="No video of the training data shows the class 'ring' of task 1"):
        run("train", "without")
    circle = next(category["id"] for category in content["categories"] if category["name"] == "circle")
    together = [
        {**row, "id": 2 * row["id"] + number, "category_id": category}
        for row in content["annotations"]
        for number, category in enumerate((circle, ring))
    ]
    (tmp_path / "together.json").write_text(json.dumps({**content, "annotations": together}))
    classes = {"tasks": [["circle"], ["ring"]], "mode": "disjoint"}
    with pytest.raises(
        ValueError,
        match=r"Task 0 \(circle\): .*together.json: no video shows one of the classes circle and none of ring",
    ):
        run("train", "together", classes=classes)
    renamed = [{**category, "name": category["name"].upper()} for category in content["categories"]]
    (tmp_path / "renamed.json").write_text(json.dumps({**content, "categories": renamed}))
    with pytest.raises(ValueError, match="lacks classes of the schedule: circle, ring, square, star. Its classes are"):
        run("test", "renamed")
    with pytest.raises(FileNotFoundError, match="absent.json"):
        run("test", "absent")
    assert not (tmp_path / "run").exists()


def test_a_base_of_another_architecture(shapes, tmp_path):
    tiny_genvis().save_pretrained(tmp_path / "genvis")
    with pytest.raises(ValueError, match="`base_model`: .*genvis is a genvis model, hvpl needs hvpl"):
        train_continual(tiny_schedule(shapes, base_model=str(tmp_path / "genvis")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
