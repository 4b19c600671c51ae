# SPDX-License-Identifier: Apache-2.0
"""Whole schedules of tiny real models: data, training and files of each task, and resuming after a kill."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file
from transformers import AutoConfig

from tests.support.launching import finish, kill_after_first_checkpoint, launch
from tests.support.tiny_directions import tiny_directions
from tests.support.tiny_schedule import TASKS, images_of, tiny_schedule
from transformers_cvis import AutoModelForVideoInstanceSegmentation
from transformers_cvis.continual import Schedule, train_continual
from transformers_cvis.continual import run as continual
from transformers_cvis.continual.methods import METHODS

TINY_SCHEDULE = Path(__file__).parents[1] / "support" / "tiny_schedule.py"
TINY_DIRECTIONS = Path(__file__).parents[1] / "support" / "tiny_directions.py"
EXAMPLE = Path(__file__).parents[2] / "examples" / "train_continual.py"


def test_files_of_a_finished_schedule(finished):
    assert {path.name for path in finished.iterdir()} == {"schedule.json", "task-0", "task-1", "task-2", "report"}
    assert (finished / "task-0" / "model.safetensors").is_file()
    for number, names in enumerate((["circle", "star"], ["circle", "star", "ring"], [*TASKS[0], "ring", "square"])):
        folder = finished / f"task-{number}"
        model = AutoModelForVideoInstanceSegmentation.from_pretrained(folder)
        assert list(model.config.id2label.values()) == names
        assert model.config.calibration_deltas == [0.4, 0.5]
        assert model.active_task_adapters == [f"task-{task}" for task in range(1, number + 1)]
        results = json.loads((folder / "results.json").read_text())
        assert {track["video_id"] for track in results} == {1, 2, 3}
        assert not (folder / "checkpoints").exists()
        assert (folder / "video_preprocessor_config.json").is_file()
        assert (folder / "training_log.jsonl").is_file()
        assert number == 0 or not (folder / "model.safetensors").exists()
        assert_card_reports(folder, number)
    report = json.loads((finished / "report" / "report.json").read_text())
    assert report["tasks"] == TASKS
    assert len(report["evaluations"]) == 3


def assert_card_reports(folder: Path, number: int) -> None:
    """The card of a task holds its measurements as metadata and as a table, and the report of all tasks so far."""
    report = json.loads((folder / "report.json").read_text())
    card = ModelCard.load(folder / "README.md")
    evaluation, learnt = report["evaluations"][number], sum(map(len, report["tasks"]))
    measured = evaluation["overall"][report["evaluate_classes"]]
    expected = {name: pytest.approx(100 * value, abs=0.005) for name, value in measured.items() if value != -1}
    assert {result.metric_type: result.metric_value for result in card.data.eval_results or ()} == expected
    assert (folder / "report.md").read_text().strip() in card.text
    scope = {
        "all": f"all {len(evaluation['classes'])} classes, {learnt} of them learnt",
        "seen": f"the {learnt} classes learnt so far",
        "current": f"the {len(report['tasks'][-1])} classes of this task",
    }[report["evaluate_classes"]]
    if expected:
        assert f"valid.json, over {scope}.\n\n| metric | value |" in card.text
    else:  # no test video shows a class of the task
        assert "Nothing was measured." in card.text


@pytest.mark.parametrize("method", [name for name in METHODS if name != "hvpl"])
def test_every_method_runs(shapes, tmp_path, method):
    """The folder of each task loads as the model after it; report and revisions are of one kind for all methods."""
    report = train_continual(
        tiny_schedule(shapes, method, classes={"tasks": [["circle"], ["ring"]]}),
        tmp_path,
        overrides=["recipe.max_steps=2", "report.evaluate_classes=current"],
    )
    rules = METHODS[method]
    expected = [["circle", "ring"]] if rules.learns_all_at_once else [["circle"], ["ring"]]
    assert report.tasks == expected
    for number in range(len(expected)):
        model = AutoModelForVideoInstanceSegmentation.from_pretrained(tmp_path / f"task-{number}")
        assert list(model.config.id2label.values()) == [name for names in expected[: number + 1] for name in names]
        assert_card_reports(tmp_path / f"task-{number}", number)
        is_adapter = number > 0 and rules.has_prompts
        assert is_adapter == (tmp_path / f"task-{number}" / "task_adapter_config.json").is_file()
        assert model.config.task_prompt_counts == [4 if rules.has_prompts else 0] * number


def test_each_task_trains_its_own_part_only(finished):
    base = load_file(finished / "task-0" / "model.safetensors")
    former = load_file(finished / "task-1" / "task_adapter_model.safetensors")
    latter = load_file(finished / "task-2" / "task_adapter_model.safetensors")
    assert {name: torch.equal(latter[name], former[name]) for name in former} == dict.fromkeys(former, True)
    model = AutoModelForVideoInstanceSegmentation.from_pretrained(finished / "task-2")
    shared = [name for name in base if ".class_predictor.heads.0." not in name]
    assert all(torch.equal(model.state_dict()[name], base[name]) for name in shared)
    start = AutoModelForVideoInstanceSegmentation.from_pretrained(finished / "task-1")
    start.add_task(["square"], 4)
    for name, parameter in model.task_parameters(2).items():
        assert not torch.equal(parameter, dict(start.named_parameters())[name]), name


def test_frame_prompts_avoid_protected_directions(finished, shapes, tmp_path):
    """The change of the prompt has a component in the basis only without the correction."""
    train_continual(tiny_schedule(shapes, gradient_projection=None, base_model=str(finished / "task-0")), tmp_path)
    shares = {}
    for name, folder in (("with", finished), ("without", tmp_path)):
        model = AutoModelForVideoInstanceSegmentation.from_pretrained(finished / "task-1")
        basis = model.protected_directions()
        assert 0 < basis.shape[1] < 32
        model.set_task_adapters(0)
        directions = model.protected_directions()
        assert torch.equal(directions, basis[:, : directions.shape[1]])
        model.delete_task_adapter("task-1")
        model.add_task(["ring"], 4)
        before = model.projected_parameters()[0].detach().clone()
        trained = AutoModelForVideoInstanceSegmentation.from_pretrained(folder / "task-1").projected_parameters()[0]
        change = trained.detach() - before
        assert change.norm() > 1e-3
        shares[name] = (change @ directions.float()).norm() / change.norm()
    assert shares["with"] < 1e-5
    assert shares["without"] > 1e-2


def labels_seen(schedule, folder, monkeypatch) -> list[dict[int, set[str]]]:
    """Return the training data per task: the class names of each video, by video id."""
    seen = []

    class LookingTrainer(continual.Trainer):
        def __init__(self, recipe, output_dir, model, dataset, *args):
            names = recipe.data.class_names
            videos = {}
            for number in range(3 * len(dataset)):
                sample = dataset[number]
                classes = {names[label] for label in sample["labels"]["class_labels"].tolist()}
                videos.setdefault(sample["video_id"], set()).update(classes)
            seen.append(videos)
            super().__init__(recipe, output_dir, model, dataset, *args)

    monkeypatch.setattr(continual, "Trainer", LookingTrainer)
    train_continual(schedule, folder)
    return seen


@pytest.mark.parametrize("mode", ["overlap", "disjoint", "sequential"])
def test_nothing_of_another_task_reaches_training(shapes, tmp_path, monkeypatch, mode):
    content = json.loads((shapes / "train.json").read_text())
    name_of = {category["id"]: category["name"] for category in content["categories"]}
    shown = {video["id"]: set() for video in content["videos"]}
    for annotation in content["annotations"]:
        shown[annotation["video_id"]].add(name_of[annotation["category_id"]])
    recipe = tiny_schedule(shapes).to_dict()["recipe"] | {"max_steps": 1}
    schedule = tiny_schedule(
        shapes, classes={"tasks": [["circle", "star"], ["ring", "square"]], "mode": mode}, recipe=recipe
    )
    tasks = schedule.classes.tasks
    seen = labels_seen(schedule, tmp_path, monkeypatch)
    assert len(seen) == 2
    for number, videos in enumerate(seen):
        later = {name for names in tasks[number + 1 :] for name in names}
        allowed = set(tasks[number]) if mode != "sequential" else {n for names in tasks[: number + 1] for n in names}
        expected = {
            video
            for video, names in shown.items()
            if names & set(tasks[number]) and (mode == "overlap" or not names & later)
        }
        assert set(videos) == expected  # no video without a class of the task, so none that only older tasks know
        for video, names in videos.items():
            assert names <= allowed & shown[video]
    assert any(names - set(tasks[0]) for video, names in shown.items() if video in seen[0]) == (mode == "overlap")


@pytest.mark.parametrize("task", [0, 1])
def test_killed_schedule_resumes_bit_for_bit(finished, shapes, tmp_path, task):
    (process,) = launch(TINY_SCHEDULE, shapes, "hvpl", tmp_path / "killed")
    kill_after_first_checkpoint(process, tmp_path / "killed" / f"task-{task}" / "checkpoints")
    assert not (tmp_path / "killed" / f"task-{task}" / "evaluation.json").exists()
    report = train_continual(tiny_schedule(shapes), tmp_path / "killed")
    for file in ("task-0/model.safetensors", "task-2/task_adapter_model.safetensors"):
        whole, resumed = load_file(finished / file), load_file(tmp_path / "killed" / file)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert report.to_dict() == json.loads((finished / "report" / "report.json").read_text())


def test_a_finished_schedule_is_not_run_again(finished, shapes, monkeypatch):
    monkeypatch.setattr(continual, "Trainer", None)
    report = train_continual(tiny_schedule(shapes), finished)
    assert report.to_dict() == json.loads((finished / "report" / "report.json").read_text())


def test_evaluation_settings_can_change(finished, shapes, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(continual, "Trainer", None)
    options = {"evaluate_classes": "seen", "undefined": "released", "num_classes": "all"}
    report = train_continual(tiny_schedule(shapes, report=options), tmp_path)
    written = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report.to_dict() == written
    assert options.items() <= written.items()
    assert "are over seen classes" in (tmp_path / "report" / "report.md").read_text()
    assert json.loads((tmp_path / "schedule.json").read_text())["report"]["undefined"] == "released"
    with pytest.raises(ValueError, match=r"it differs in report.forgetting_videos\."):
        train_continual(tiny_schedule(shapes, report={"forgetting_videos": "all"}), tmp_path)


def test_restart_deletes_the_former_run(shapes, tmp_path):
    quick = ["recipe.max_steps=1", "classes.tasks=[[circle], [ring]]"]
    train_continual(tiny_schedule(shapes), tmp_path, overrides=quick)
    before = load_file(tmp_path / "task-1" / "task_adapter_model.safetensors")
    train_continual(tiny_schedule(shapes), tmp_path, resume="restart", overrides=[*quick, "seed=5"])
    after = load_file(tmp_path / "task-1" / "task_adapter_model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_every_task_is_pushed_as_a_revision(shapes, tmp_path, loopback_hub):
    schedule = tiny_schedule(
        shapes, classes={"tasks": [["circle"], ["ring"]]}, push={"repo": "tester/continual", "license": "apache-2.0"}
    )
    train_continual(schedule, tmp_path, overrides=["recipe.max_steps=1", "report.evaluate_classes=seen"])
    repo = loopback_hub.repos["model", "tester/continual"]
    assert set(repo.branches) == {"main", "task-1"}
    for number, revision in enumerate(("main", "task-1")):
        readme = HfApi().hf_hub_download("tester/continual", "README.md", revision=revision)
        HfApi().snapshot_download("tester/continual", revision=revision)
        assert_card_reports(Path(readme).parent, number)
        assert "license: apache-2.0" in Path(readme).read_text()
    assert {"report.json", "report.md", "ap_matrix.png", "steps.png", "forgetting.png"} <= set(repo.files("task-1"))
    model = AutoModelForVideoInstanceSegmentation.from_pretrained("tester/continual", revision="task-1")
    local = AutoModelForVideoInstanceSegmentation.from_pretrained(tmp_path / "task-1")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), local.parameters(), strict=True))
    assert torch.equal(model.protected_directions(), local.protected_directions())


def commits(hub) -> int:
    return sum(method == "POST" and "/commit/" in path for method, path in hub.log)


def assert_pushed(hub, run: Path, number: int) -> None:
    """The revisions of the repository equal the folders of base and tasks."""
    assert set(hub.repos["model", "tester/late"].branches) == {"main", *(f"task-{task}" for task in range(1, number))}
    for task in range(number):
        revision = f"task-{task}" if task else "main"
        model = AutoModelForVideoInstanceSegmentation.from_pretrained("tester/late", revision=revision)
        local = AutoModelForVideoInstanceSegmentation.from_pretrained(run / f"task-{task}")
        assert model.config.id2label == local.config.id2label
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), local.parameters(), strict=True))


def test_a_finished_run_is_pushed_when_a_repository_is_given(finished, shapes, tmp_path, monkeypatch, loopback_hub):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(continual, "Trainer", None)
    schedule = tiny_schedule(shapes, push={"repo": "late", "license": "apache-2.0"})
    train_continual(schedule, tmp_path)
    assert_pushed(loopback_hub, tmp_path, 3)
    repo = loopback_hub.repos["model", "tester/late"]
    assert "report.json" in repo.files("main")
    assert "report.json" in repo.files("task-1")

    loopback_hub.log.clear()
    train_continual(schedule, tmp_path)
    assert commits(loopback_hub) == 0
    HfApi().delete_branch("tester/late", branch="task-1")
    train_continual(schedule, tmp_path)
    assert commits(loopback_hub) == 1
    assert_pushed(loopback_hub, tmp_path, 3)


def test_resumed_run_pushes_finished_tasks_first(finished, shapes, tmp_path, loopback_hub):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "task-2")
    train_continual(tiny_schedule(shapes, push={"repo": "tester/late"}), tmp_path)
    assert_pushed(loopback_hub, tmp_path, 3)


def test_failed_push_is_repeated_without_training(shapes, tmp_path, monkeypatch, loopback_hub):
    """This holds for methods whose tasks are whole models as well."""
    schedule = tiny_schedule(
        shapes, "finetune", classes={"tasks": [["circle"], ["ring"]]}, push={"repo": "tester/late"}
    )
    with loopback_hub.failing("POST", "/commit/task-1"), pytest.raises(HfHubHTTPError):
        train_continual(schedule, tmp_path, overrides=["recipe.max_steps=1"])
    monkeypatch.setattr(continual, "Trainer", None)
    train_continual(schedule, tmp_path, overrides=["recipe.max_steps=1"])
    assert_pushed(loopback_hub, tmp_path, 2)


def test_the_example_runs_a_schedule_and_pushes_it_later(shapes, tmp_path, monkeypatch, capsys, loopback_hub):
    schedule = tiny_schedule(shapes, classes={"tasks": [["circle"], ["ring"]]}).to_dict()
    (tmp_path / "mine.yaml").write_text(json.dumps(schedule))  # JSON is YAML as well
    arguments = ["--schedule", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "run")]
    arguments += ["--set", "recipe.max_steps=1", "--set", "gradient_projection.num_clips=1"]
    for further in ([], ["--push", "tester/late"]):
        monkeypatch.setattr(sys, "argv", ["train_continual.py", *arguments, *further])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
        printed = capsys.readouterr().out
        assert "| after task | classes | AP |" in printed
        assert "\nafter task 0: circle " in printed
        assert "\nafter task 1: " in printed
    assert_pushed(loopback_hub, tmp_path / "run", 2)


def test_a_base_that_is_learnt_already(finished, shapes, tmp_path):
    schedule = tiny_schedule(shapes, base_model=str(finished / "task-0"), classes={"tasks": TASKS[:2]})
    train_continual(schedule, tmp_path, overrides=["recipe.max_steps=1"])
    bases = [load_file(folder / "task-0" / "model.safetensors") for folder in (finished, tmp_path)]
    assert all(torch.equal(bases[0][name], bases[1][name]) for name in bases[0])
    summaries = [
        json.loads((folder / "task-0" / "training_summary.json").read_text()) for folder in (finished, tmp_path)
    ]
    for key in ("steps", "seconds", "command", "recipe"):  # how these weights were trained
        assert summaries[0][key] == summaries[1][key]
    assert_card_reports(tmp_path / "task-0", 0)
    for classes, message in (
        ([["star", "circle"], ["ring"]], "in the same order, star, circle, got circle, star"),
        ([["circle"], ["ring"]], "in the same order, circle, got circle, star"),
    ):
        schedule = tiny_schedule(shapes, base_model=str(finished / "task-0"), classes={"tasks": classes})
        with pytest.raises(ValueError, match=message):
            train_continual(schedule, tmp_path / "other")


def test_a_method_stays_itself_on_the_base_of_another(shapes, tmp_path):
    train_continual(tiny_schedule(shapes, "eclipse", classes={"tasks": TASKS[:1]}), tmp_path / "eclipse")
    changes = {"base_model": str(tmp_path / "eclipse" / "task-0"), "classes": {"tasks": TASKS[:2]}}
    train_continual(tiny_schedule(shapes, "crisp", **changes), tmp_path / "crisp", overrides=["recipe.max_steps=1"])
    config = AutoConfig.from_pretrained(tmp_path / "crisp" / "task-1")
    assert config.residual_prompts
    assert config.lambda_ic > 0
    assert config.prompt_init == "directions"
    losses = json.loads((tmp_path / "crisp" / "task-1" / "training_log.jsonl").read_text().splitlines()[-1])
    assert {"loss_isc", "loss_ic"} <= set(losses)
    ablation = Schedule.load(tiny_schedule(shapes, "crisp"), ["recipe.model.config.lambda_ic=0.0"])
    train_continual(ablation, tmp_path / "ablation", overrides=["recipe.max_steps=1"])
    assert AutoConfig.from_pretrained(tmp_path / "ablation" / "task-1").lambda_ic == 0


def test_a_held_out_share_of_the_videos(shapes, tmp_path):
    schedule = tiny_schedule(shapes, test=None, test_share=0.25, classes={"tasks": [["circle"], ["ring"]]})
    report = train_continual(schedule, tmp_path, overrides=["recipe.max_steps=1"])
    parts = [json.loads((tmp_path / "splits" / f"{name}_split.json").read_text()) for name in ("train", "test")]
    train_videos, test_videos = ({video["id"] for video in part["videos"]} for part in parts)
    assert len(train_videos) + len(test_videos) == 8
    assert not train_videos & test_videos
    assert len(report.evaluations) == 2
    again = train_continual(schedule, tmp_path, overrides=["recipe.max_steps=1"])
    assert again.to_dict() == report.to_dict()


def test_images_take_part_where_they_show_a_class_of_the_task(shapes, tmp_path, monkeypatch):
    """A task without images uses the videos alone."""
    seen = []

    class LookingTrainer(continual.Trainer):
        def __init__(self, recipe, output_dir, model, dataset, *args):
            samples = [dataset[number] for number in range(16)]
            seen.append({sample["name"].split()[0] for sample in samples})
            assert {len(sample["frame_indices"]) for sample in samples} == {2}
            super().__init__(recipe, output_dir, model, dataset, *args)

    monkeypatch.setattr(continual, "Trainer", LookingTrainer)
    videos = {"json": str(shapes / "train.json"), "images": str(shapes / "JPEGImages")}
    images = images_of(shapes, tmp_path / "coco.json", {"disc": "circle"})
    schedule = tiny_schedule(shapes, train=[videos, images], classes={"tasks": [["circle"], ["ring"]]})
    train_continual(schedule, tmp_path / "run", overrides=["recipe.max_steps=2"])
    assert seen == [{"video", "image"}, {"video"}]
    for number in range(2):
        log = (tmp_path / "run" / f"task-{number}" / "training_log.jsonl").read_text().splitlines()
        assert [row["step"] for row in map(json.loads, log) if "loss" in row] == [1, 2]


def test_protected_directions_are_those_of_all_processes(shapes, tmp_path):
    """Two processes share the clips; both get the directions that one process finds alone."""
    processes = launch(TINY_DIRECTIONS, shapes, tmp_path, processes=2)
    alone = tiny_directions(shapes)
    finish(processes)
    first, second = (load_file(tmp_path / f"rank-{rank}.safetensors")["directions"] for rank in range(2))
    assert torch.equal(first, second)
    assert first.shape == alone.shape
    assert 0 < alone.shape[1] < alone.shape[0]
    torch.testing.assert_close(first @ first.T, alone @ alone.T, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_processes_learn_the_same_as_one(shapes, tmp_path):
    overrides = ["recipe.optimizer.epsilon=1e-3"]
    finish(launch(TINY_SCHEDULE, shapes, "hvpl", tmp_path / "one", *overrides, FIXED_POINTS="1"))
    finish(launch(TINY_SCHEDULE, shapes, "hvpl", tmp_path / "two", *overrides, processes=2, FIXED_POINTS="1"))
    for file in ("task-0/model.safetensors", "task-2/task_adapter_model.safetensors"):
        one, two = load_file(tmp_path / "one" / file), load_file(tmp_path / "two" / file)
        for name in one:
            assert torch.allclose(one[name], two[name], rtol=1e-3, atol=1e-5), name


def test_a_prompt_for_every_class(shapes, tmp_path):
    schedule = tiny_schedule(
        shapes, "crisp", num_prompts="classes", classes={"tasks": [["circle"], ["star", "ring"], ["square"]]}
    )
    train_continual(schedule, tmp_path, overrides=["recipe.max_steps=1"])
    assert AutoConfig.from_pretrained(tmp_path / "task-2").task_prompt_counts == [2, 1]
