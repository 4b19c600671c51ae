"""Whole schedules of tiny real models: what each task sees, learns, leaves behind and how it goes on after a kill."""

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

from tests.support.helpers import tiny_genvis
from tests.support.launching import finish, kill_after_first_checkpoint, launch
from tests.support.tiny_directions import tiny_directions
from tests.support.tiny_schedule import CATEGORIES, TASKS, tiny_schedule
from transformers_cvis import AutoModelForVideoInstanceSegmentation
from transformers_cvis.continual import Schedule, train_continual
from transformers_cvis.continual import run as continual
from transformers_cvis.continual.methods import METHODS
from transformers_cvis.data import make_moving_shapes, split_ytvis

TINY_SCHEDULE = Path(__file__).parents[1] / "support" / "tiny_schedule.py"
TINY_DIRECTIONS = Path(__file__).parents[1] / "support" / "tiny_directions.py"
EXAMPLE = Path(__file__).parents[2] / "examples" / "train_continual.py"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "data"
    return make_moving_shapes(
        folder, 8, 3, num_frames=4, size=(64, 96), seed=1, categories=CATEGORIES, num_objects=(2, 4)
    )


@pytest.fixture(scope="module")
def finished(shapes, tmp_path_factory) -> Path:
    """The output folder of a whole run of HVPL."""
    folder = tmp_path_factory.mktemp("run") / "hvpl"
    train_continual(tiny_schedule(shapes), folder)
    return folder


def test_what_a_schedule_leaves(finished):
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
        assert (folder / "video_preprocessor_config.json").is_file() and (folder / "training_log.jsonl").is_file()
        assert number == 0 or not (folder / "model.safetensors").exists()
        assert_card_reports(folder, number)
    report = json.loads((finished / "report" / "report.json").read_text())
    assert report["tasks"] == TASKS and len(report["evaluations"]) == 3


def assert_card_reports(folder: Path, number: int) -> None:
    """The card of a task has its measurements as metadata and as a table, and the report of all tasks so far."""
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


def test_each_task_learns_its_own_part_and_nothing_else(finished):
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


def test_frame_prompts_keep_clear_of_protected_directions(finished, shapes, tmp_path):
    """With the correction the change of the prompt has no component in the basis, without it, it has."""
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
    assert shares["with"] < 1e-5 and shares["without"] > 1e-2


def labels_seen(schedule, folder, monkeypatch) -> list[dict[int, set[str]]]:
    """Per task, what the trainer is given to learn from: the class names of each video, by video id."""
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
def test_a_killed_schedule_goes_on_bit_for_bit(finished, shapes, tmp_path, task):
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


def test_another_schedule_does_not_go_on(finished, shapes, monkeypatch):
    monkeypatch.setattr(continual, "Trainer", None)
    with pytest.raises(ValueError, match="holds the run of another schedule: it differs in num_prompts, seed"):
        train_continual(tiny_schedule(shapes, num_prompts=3, seed=1), finished)
    with pytest.raises(ValueError, match="`resume` must be 'auto' or 'restart', got 'later'"):
        train_continual(tiny_schedule(shapes), finished, resume="later")


def test_how_evaluations_are_read_can_change(finished, shapes, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(continual, "Trainer", None)
    options = {"evaluate_classes": "seen", "undefined": "released", "num_classes": "all"}
    report = train_continual(tiny_schedule(shapes, report=options), tmp_path)
    written = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report.to_dict() == written and options.items() <= written.items()
    assert "are over seen classes" in (tmp_path / "report" / "report.md").read_text()
    assert json.loads((tmp_path / "schedule.json").read_text())["report"]["undefined"] == "released"
    with pytest.raises(ValueError, match=r"it differs in report.forgetting_videos\."):
        train_continual(tiny_schedule(shapes, report={"forgetting_videos": "all"}), tmp_path)


def test_restart_deletes_what_is_there(shapes, tmp_path):
    quick = ["recipe.max_steps=1", "classes.tasks=[[circle], [ring]]"]
    train_continual(tiny_schedule(shapes), tmp_path, overrides=quick)
    before = load_file(tmp_path / "task-1" / "task_adapter_model.safetensors")
    train_continual(tiny_schedule(shapes), tmp_path, resume="restart", overrides=[*quick, "seed=5"])
    after = load_file(tmp_path / "task-1" / "task_adapter_model.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_restart_that_cannot_be_leaves_the_former_run(finished, shapes, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setattr(continual, "Trainer", None)
    for number, wrong in enumerate(("test.json=nowhere.json", "base_model=nowhere", "recipe.precision=fp16")):
        before = files_of(tmp_path / "run")
        with pytest.raises((ValueError, OSError)):
            train_continual(tiny_schedule(shapes), tmp_path / "run", resume="restart", overrides=[wrong])
        assert files_of(tmp_path / "run") == before and before.keys() == files_of(finished).keys()
        with pytest.raises((ValueError, OSError)):
            train_continual(tiny_schedule(shapes), tmp_path / f"new-{number}", resume="restart", overrides=[wrong])
        assert not (tmp_path / f"new-{number}").exists()


def test_more_prompts_than_the_ic_loss_can_compare_are_refused_before_the_base(shapes, tmp_path):
    schedule = tiny_schedule(shapes, "crisp", num_prompts=200)
    with pytest.raises(ValueError, match="200 prompts are too many. Set `config.lambda_ic` to 0"):
        train_continual(schedule, tmp_path / "run")
    assert not (tmp_path / "run").exists()


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
    """Base and every task are the revisions of the repository, as they are in the folders of the run."""
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
    assert "report.json" in repo.files("main") and "report.json" in repo.files("task-1")

    loopback_hub.log.clear()
    train_continual(schedule, tmp_path)
    assert commits(loopback_hub) == 0
    HfApi().delete_branch("tester/late", branch="task-1")
    train_continual(schedule, tmp_path)
    assert commits(loopback_hub) == 1
    assert_pushed(loopback_hub, tmp_path, 3)


def test_a_run_that_has_begun_pushes_what_it_has_learnt_before_it_goes_on(finished, shapes, tmp_path, loopback_hub):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "task-2")
    train_continual(tiny_schedule(shapes, push={"repo": "tester/late"}), tmp_path)
    assert_pushed(loopback_hub, tmp_path, 3)


def test_a_push_that_failed_is_made_up_for_without_training(shapes, tmp_path, monkeypatch, loopback_hub):
    """Also for a method whose tasks are whole models."""
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
    (tmp_path / "mine.yaml").write_text(json.dumps(schedule))  # which is YAML, too
    arguments = ["--schedule", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "run")]
    arguments += ["--set", "recipe.max_steps=1", "--set", "gradient_projection.num_clips=1"]
    for further in ([], ["--push", "tester/late"]):
        monkeypatch.setattr(sys, "argv", ["train_continual.py", *arguments, *further])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
        printed = capsys.readouterr().out
        assert "| after task | classes | AP |" in printed
        assert "\nafter task 0: circle " in printed and "\nafter task 1: " in printed
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
        ([["star", "circle"], ["ring"]], "knows the classes circle, star, in this order; the base .* has star, circle"),
        ([["circle"], ["ring"]], "knows the classes circle, star, in this order"),
    ):
        schedule = tiny_schedule(shapes, base_model=str(finished / "task-0"), classes={"tasks": classes})
        with pytest.raises(ValueError, match=message):
            train_continual(schedule, tmp_path / "other")


def test_a_method_stays_itself_on_the_base_of_another(shapes, tmp_path):
    train_continual(tiny_schedule(shapes, "eclipse", classes={"tasks": TASKS[:1]}), tmp_path / "eclipse")
    changes = {"base_model": str(tmp_path / "eclipse" / "task-0"), "classes": {"tasks": TASKS[:2]}}
    train_continual(tiny_schedule(shapes, "crisp", **changes), tmp_path / "crisp", overrides=["recipe.max_steps=1"])
    config = AutoConfig.from_pretrained(tmp_path / "crisp" / "task-1")
    assert config.residual_prompts and config.lambda_ic > 0 and config.prompt_init == "directions"
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
    assert len(train_videos) + len(test_videos) == 8 and not train_videos & test_videos
    assert len(report.evaluations) == 2
    again = train_continual(schedule, tmp_path, overrides=["recipe.max_steps=1"])
    assert again.to_dict() == report.to_dict()


def test_a_split_is_made_again_when_it_is_another(finished, shapes, tmp_path, monkeypatch):
    """What a run that never began has left is not taken for that of another share, seed or data."""
    monkeypatch.setattr(continual, "Trainer", None)
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
        ({"classes": {"tasks": [["circle"], ["moon"]]}}, "no class 'moon'"),
        ({"base_model": str(finished / "task-0"), "classes": {"tasks": [["circle"], ["ring"]]}}, "knows the classes"),
        ({"base_model": "no/such-base"}, "`base_model`: no/such-base: there is no such folder"),
        ({"increment": {"mixed_precision": "fp16"}}, "`mixed_precision: fp16` needs a GPU"),
        ({"test_share": 2.0}, "test_share is 2.0; give a share"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            train_continual(tiny_schedule(shapes, **{"test": None, "test_share": 0.25, **changes}), run)
        assert not (list(run.iterdir()) if exists else run.exists())


def images_of(shapes: Path, path: Path, shown: dict[str, str]) -> dict:
    """A source of the first frames of the videos, as COCO json; `shown`: category -> the class that it becomes."""
    content = json.loads((shapes / "train.json").read_text())
    name_of = {category["id"]: category["name"] for category in content["categories"]}
    ids = {class_name: number for number, class_name in enumerate(shown.values(), start=1)}
    rows = [row for row in content["annotations"] if name_of[row["category_id"]] in ids and row["segmentations"][0]]
    coco = {
        "images": [
            {**{key: video[key] for key in ("id", "width", "height")}, "file_name": video["file_names"][0]}
            for video in content["videos"]
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(shown, start=1)],
        "annotations": [
            {
                **{"id": row["id"], "image_id": row["video_id"], "category_id": ids[name_of[row["category_id"]]]},
                **{"segmentation": row["segmentations"][0], "bbox": row["bboxes"][0], "area": row["areas"][0]},
                "iscrowd": 0,
            }
            for row in rows
        ],
    }
    path.write_text(json.dumps(coco))
    return {"json": str(path), "images": str(shapes / "JPEGImages"), "kind": "images", "class_mapping": shown}


def test_images_take_part_where_they_show_a_class_of_the_task(shapes, tmp_path, monkeypatch):
    """A task whose images are none uses the videos alone."""
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
    run = continual._ContinualRun(tiny_schedule(shapes, train=[videos, images], classes=classes), tmp_path / "run")
    run.prepare("auto")
    assert both and [len(recipe.data.train) for recipe in run.recipes] == [1, 2]


def test_protected_directions_are_those_of_all_processes(shapes, tmp_path):
    """Two processes share out the clips; both get the same directions, and those that one process alone finds."""
    processes = launch(TINY_DIRECTIONS, shapes, tmp_path, processes=2)
    alone = tiny_directions(shapes)
    finish(processes)
    first, second = (load_file(tmp_path / f"rank-{rank}.safetensors")["directions"] for rank in range(2))
    assert torch.equal(first, second) and first.shape == alone.shape and 0 < alone.shape[1] < alone.shape[0]
    torch.testing.assert_close(first @ first.T, alone @ alone.T, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(shapes, tmp_path):
    overrides = ["recipe.optimizer.epsilon=1e-3"]
    finish(launch(TINY_SCHEDULE, shapes, "hvpl", tmp_path / "one", *overrides, FIXED_POINTS="1"))
    finish(launch(TINY_SCHEDULE, shapes, "hvpl", tmp_path / "two", *overrides, processes=2, FIXED_POINTS="1"))
    for file in ("task-0/model.safetensors", "task-2/task_adapter_model.safetensors"):
        one, two = load_file(tmp_path / "one" / file), load_file(tmp_path / "two" / file)
        for name in one:
            assert torch.allclose(one[name], two[name], rtol=1e-3, atol=1e-5), name


# What is wrong with a schedule or its data is said before any training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "hvlp"}, "`method` must be one of .*'hvpl'.*, got 'hvlp'"),
        ({"classes": {"tasks": [["circle"], ["moon"]]}}, "the training data has no class 'moon'; it has"),
        ({"classes": {"tasks": [["circle"], ["ring", "circle"]]}}, "the class 'circle' is in more than one task"),
        (
            {"classes": {"tasks": [["circle", "circle"]]}},
            "the class 'circle' is in more than one task, or twice in one",
        ),
        ({"classes": {"tasks": [["circle"], []]}}, "every task of `tasks` needs at least one class"),
        ({"classes": {"split": "3-2"}}, "3-2 does not divide the 4 classes .* after a base of 3, 1 are left"),
        ({"classes": {"split": "many"}}, "`split` must look like 20-2"),
        ({"classes": {"split": "2-1", "tasks": TASKS}}, "give either `split`, for example 20-2, or `tasks`"),
        ({"test_share": 0.2}, "give either `test`, a data set to evaluate on, or `test_share`"),
        ({"num_prompts": 0}, '`num_prompts` must be at least 1, or "classes", got 0'),
        ({"num_prompts": "many"}, "`num_prompts` must be of type int or 'classes', got 'many'"),
        (
            {"recipe": {"model": {"config": {"num_prompts": "classes"}}}},
            "`recipe.model.config.num_prompts`: .* set its own `num_prompts`",
        ),
        ({"base": {"model": {"config": {"num_prompts": 3}}}}, "`base.model.config.num_prompts`: .* set its own"),
        ({"tasks": {0: {"model": {"config": {"num_prompts": 3}}}}}, "`tasks.0.model.config.num_prompts`: .* its own"),
        ({"tasks": {"one": {"max_steps": 7}}}, "`tasks.one`: .* by their numbers, of which 0 is the base, .*'one'"),
        ({"tasks": {-1: {"max_steps": 7}}}, "`tasks.-1`: .* by their numbers"),
        ({"tasks": {1: 7}}, "`tasks.1`: .* what differs .*; got 1: 7"),
        ({"tasks": {99: {"max_steps": 7}}}, "`tasks.99`: there is no such task; they are 0 to 2"),
        (
            {"increment": {"model": {"init_from": "x"}}},
            "`increment.model`: later tasks go on from the model",
        ),
        ({"tasks": {"1": {"model": {"config": {}}}}}, "`tasks.1.model`: later tasks go on from the model"),
        ({"recipe": {"seed": 3}}, "`recipe.seed`: this belongs to the schedule"),
        ({"recipe": {"data": {"train": []}}}, "`recipe.data.train`: the schedule makes it for every task"),
        ({"increment": {"max_step": 3}}, "task 1 of the schedule: .*unknown key 'max_step'.*Did you mean 'max_steps'"),
        ({"report": {"evaluate_classes": "some"}}, "`evaluate_classes` must be one of .*, got 'some'"),
        ({"gradient_projection": {"threshold": 2}}, "`threshold` is a share of the energy in 0..1, got 2"),
        (
            {"gradient_projection": {"space": "released", "num_clips": 8}},
            "needs 256 frames of every task, and 8 clips of 2, as task 0 has them, are 16: set `num_clips` to 128 or",
        ),
        (
            {"gradient_projection": {"space": "released"}},
            "needs a model of as many; this one has 32 .*hidden_dim.*Use `space: features`",
        ),
        ({"distillation": {"alpha": 2.0}}, "`distillation`: hvpl has none"),
        ({"method": "mib", "gradient_projection": None, "distillation": {"alhpa": 1}}, "unknown key 'alhpa'"),
        ({"sed": 1}, "unknown key 'sed' at the top level. Did you mean 'seed'"),
    ],
)
def test_schedules_that_cannot_be(shapes, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(continual, "Trainer", None)
    with pytest.raises(ValueError, match=message):
        train_continual(tiny_schedule(shapes, **changes), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("start", ["base_model", "init_from"])
def test_released_directions_on_a_model_of_another_width(finished, shapes, tmp_path, monkeypatch, start):
    monkeypatch.setattr(continual, "Trainer", None)
    base, changes = str(finished / "task-0"), {"gradient_projection": {"space": "released"}}
    changes |= {"base_model": base} if start == "base_model" else {"base": {"model": {"init_from": base}}}
    with pytest.raises(ValueError, match="needs a model of as many; this one has 32"):
        train_continual(tiny_schedule(shapes, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_prompt_for_every_class(shapes, tmp_path):
    schedule = tiny_schedule(
        shapes, "crisp", num_prompts="classes", classes={"tasks": [["circle"], ["star", "ring"], ["square"]]}
    )
    train_continual(schedule, tmp_path, overrides=["recipe.max_steps=1"])
    assert AutoConfig.from_pretrained(tmp_path / "task-2").task_prompt_counts == [2, 1]


def test_data_that_does_not_fit(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(continual, "Trainer", None)
    content = json.loads((shapes / "train.json").read_text())
    ring = next(category["id"] for category in content["categories"] if category["name"] == "ring")
    without = {**content, "annotations": [row for row in content["annotations"] if row["category_id"] != ring]}
    (tmp_path / "without.json").write_text(json.dumps(without))

    def run(part: str, name: str, **changes):
        source = {"json": str(tmp_path / f"{name}.json"), "images": str(shapes / "JPEGImages")}
        train_continual(tiny_schedule(shapes, **{part: source}, **changes), tmp_path / "run")

    with pytest.raises(ValueError, match="The class 'ring' of task 1 is in no video of the training data"):
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
    with pytest.raises(ValueError, match="has other classes than the schedule: circle, ring, square, star cannot be"):
        run("test", "renamed")
    with pytest.raises(FileNotFoundError, match="absent.json"):
        run("test", "absent")
    assert not (tmp_path / "run").exists()


def test_a_base_of_another_architecture(shapes, tmp_path):
    tiny_genvis().save_pretrained(tmp_path / "genvis")
    with pytest.raises(ValueError, match="`base_model`: .*genvis is a genvis model, hvpl needs hvpl"):
        train_continual(tiny_schedule(shapes, base_model=str(tmp_path / "genvis")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
