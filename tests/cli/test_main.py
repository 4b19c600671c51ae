"""The command line, as a user meets it: what it prints, what it writes, how it fails."""

import json
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_utils

from tests.support.detectron2_names import ResNet, genvis_names, hvpl_names, mask2former_names, random_state_dict
from tests.support.helpers import save_tiny_genvis
from tests.support.tiny_schedule import tiny_schedule
from transformers_cvis.cli import main as cli
from transformers_cvis.continual.schedule import SCHEDULES_DIRECTORY
from transformers_cvis.data import make_moving_shapes, validate_annotations, validate_ytvis
from transformers_cvis.training.recipe import RECIPES_DIRECTORY

COMMANDS = (
    *("segment", "train", "train-continual", "evaluate", "push"),
    *("validate", "import-data", "split-data", "make-data", "convert"),
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """Two short videos of moving shapes."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return make_moving_shapes(folder, 1, 2, num_frames=4, size=(48, 64), seed=3, write_mp4=True)


@pytest.fixture(scope="module")
def video(shapes) -> str:
    return str(shapes / "videos" / "valid_00000.mp4")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A GenVIS with random weights."""
    return save_tiny_genvis(tmp_path_factory.mktemp("model"))


def run(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


def error_line(capsys) -> str:
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("transformers-cvis: error: ")]
    assert len(lines) == 1 and "Traceback" not in error, error
    return lines[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert exit_info.value.code == 0
    assert "example:" in text and f"transformers-cvis {command}" in text
    undescribed = [action.dest for action in parser_of(command)._actions if not action.help]
    assert not undescribed


def parser_of(command):
    return cli.build_parser()._subparsers._group_actions[0].choices[command]


def test_the_program_lists_its_commands(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    with pytest.raises(SystemExit) as exit_info:
        cli.main([])
    assert exit_info.value.code == 2


def test_segment_writes_video_sheet_and_json(video, model, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert run("segment", video, "--model", model, "--threshold", 0, "--out", out) == 0
    captured = capsys.readouterr()
    found = re.search(rf"{re.escape(str(video))}: (\d+) tracks? in 4 frames of 64x48", captured.out)
    num_tracks = int(found[1])
    assert num_tracks >= 1
    assert captured.out.count("\n  ") == num_tracks + 1 and "score" in captured.out

    assert sorted(path.name for path in out.iterdir()) == ["results.json", "valid_00000.mp4", "valid_00000.png"]
    with av.open(str(out / "valid_00000.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 4
    assert Image.open(out / "valid_00000.png").width > 64
    results = json.loads((out / "results.json").read_text())
    assert len(results["annotations"]) == num_tracks and all(0 <= a["score"] <= 1 for a in results["annotations"])
    assert validate_ytvis(out / "results.json") == []


def test_results_which_are_there_are_replaced_only_on_request(video, model, tmp_path, capsys):
    (tmp_path / "results.json").write_text("precious")
    arguments = ("segment", video, "--model", model, "--out", tmp_path, "--no-video")
    assert run(*arguments) == 1
    assert "results.json exists already: choose another --out, or replace it with --overwrite" in error_line(capsys)
    assert (tmp_path / "results.json").read_text() == "precious"
    assert run(*arguments, "--overwrite") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_json_can_be_printed_for_another_program(video, model, tmp_path, capsys):
    assert run("segment", video, "--model", model, "--out", tmp_path, "--json", "-", "--no-video") == 0
    assert set(json.loads(capsys.readouterr().out)) == {"videos", "categories", "annotations"}
    assert list(tmp_path.iterdir()) == []


def test_several_videos_get_names_of_their_own(video, model, shapes, tmp_path):
    folder = shapes / "JPEGImages" / "valid_00000"
    assert run("segment", video, folder, "--model", model, "--out", tmp_path, "--max-frames", 2) == 0
    videos = json.loads((tmp_path / "results.json").read_text())["videos"]
    assert [(entry["id"], entry["length"]) for entry in videos] == [(1, 2), (2, 2)]
    assert {"valid_00000.mp4", "valid_00000-2.mp4"} <= {path.name for path in tmp_path.iterdir()}


def test_a_video_never_replaces_itself(video, model, tmp_path, capsys):
    copy = tmp_path / "my.mp4"
    copy.write_bytes(Path(video).read_bytes())
    assert run("segment", copy, "--model", model, "--out", tmp_path, "--overwrite") == 1
    assert "is one of the videos and would be replaced" in error_line(capsys)
    assert copy.read_bytes() == Path(video).read_bytes()


def test_a_video_which_breaks_does_not_stop_the_others(video, model, tmp_path, capsys):
    frames = tmp_path / "frames"
    frames.mkdir()
    Image.new("RGB", (64, 48)).save(frames / "0.png")
    Image.new("RGB", (32, 48)).save(frames / "1.png")
    assert run("segment", frames, video, "--model", model, "--out", tmp_path / "out", "--no-video") == 1
    assert "all frames of a video must have one size" in error_line(capsys)
    videos = json.loads((tmp_path / "out" / "results.json").read_text())["videos"]
    assert [entry["id"] for entry in videos] == [2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.mp4"], "There is no file or folder 'absent.mp4'"),
        ([__file__], "cannot be opened as a video"),
        (["VIDEO", "--out", "{tmp}/file/out"], "Cannot write into the folder .*file"),
        (["VIDEO", "--json", "out.mp4"], "must end in .json"),
        (["VIDEO", "--model", "{tmp}/absent"], "--model .*/absent: there is no such folder, and the Hub gives no such"),
        (
            ["VIDEO", "--model", "tester/absent"],
            "--model tester/absent: .* Give the folder of a saved model, or the name",
        ),
        (["VIDEO", "--model", "{tmp}"], "--model .*: this folder holds no saved model, as it has no config.json. Give"),
        (["VIDEO", "--model", "MODEL", "--device", "gpu"], "--device gpu: use cpu, cuda, cuda:1 or mps"),
        (["VIDEO", "--model", "MODEL", "--device", "cuda:0"], "torch sees no GPU"),
    ],
)
def test_segment_fails_in_one_line_before_it_works(arguments, message, video, model, tmp_path, capsys, monkeypatch):
    if "cuda:0" in arguments:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    words = {"VIDEO": video, "MODEL": model}
    arguments = [words.get(argument, argument).replace("{tmp}", str(tmp_path)) for argument in arguments]
    assert run("segment", *arguments) == 1
    assert re.search(message, error_line(capsys))


def test_a_model_without_a_network(video, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run("segment", video, "--model", "tester/absent", "--out", tmp_path) == 1
    line = error_line(capsys)
    assert "--model tester/absent: there is no such folder, and the Hub gives no such model." in line
    assert "We couldn't connect" in line  # the reason


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--threshold", "1.5", "between 0 and 1"),
        ("--clip-length", "0", "at least 1"),
        ("--dtype", "int8", "invalid choice"),
        ("--stride", "x", "at least 1"),
    ],
)
def test_wrong_usage_has_exit_code_2(option, value, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run("segment", "a.mp4", option, value)
    assert exit_info.value.code == 2 and message in capsys.readouterr().err


def test_a_model_of_another_kind_is_told_from_a_video_model(video, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    assert run("segment", video, "--model", tmp_path, "--out", tmp_path / "out") == 1
    assert "a 'resnet' model, which is no video instance segmentation model" in error_line(capsys)


def test_a_mask2former_checkpoint_of_the_hub_segments_a_video(video, mask2former_on_the_hub, tmp_path):
    arguments = ("--model", mask2former_on_the_hub, "--threshold", 0, "--out", tmp_path)
    assert run("segment", video, *arguments) == 0
    content = json.loads((tmp_path / "results.json").read_text())
    assert {category["name"] for category in content["categories"]} == {"person", "dog"} and content["annotations"]


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(FileNotFoundError):
        run("segment", "absent.mp4", "--debug", "--out", tmp_path, "--no-video")


def test_evaluate_scores_perfect_results_with_1(shapes, tmp_path, capsys):
    truth = json.loads((shapes / "valid.json").read_text())
    results = {**truth, "annotations": [{**annotation, "score": 0.9} for annotation in truth["annotations"]]}
    (tmp_path / "results.json").write_text(json.dumps(results))
    numbers, submission = tmp_path / "numbers.json", tmp_path / "submission.zip"
    arguments = ("--results", tmp_path / "results.json", "--json", numbers, "--submission", submission)
    assert run("evaluate", shapes / "valid.json", *arguments) == 0
    assert json.loads(numbers.read_text())["summary"]["AP"] == pytest.approx(1.0)
    assert "AP50" in capsys.readouterr().out and submission.exists()


def test_evaluate_refuses_results_of_other_categories(shapes, tmp_path, capsys):
    truth = json.loads((shapes / "valid.json").read_text())
    truth["categories"][0]["name"] = "dinosaur"
    (tmp_path / "results.json").write_text(json.dumps({**truth, "annotations": []}))
    assert run("evaluate", shapes / "valid.json", "--results", tmp_path / "results.json") == 1
    assert "Category 1 is 'dinosaur' in the results" in error_line(capsys)


def test_evaluate_takes_what_segment_wrote_for_the_same_videos(shapes, model, tmp_path, capsys):
    videos = [shapes / "videos" / f"valid_0000{number}.mp4" for number in range(2)]
    results = tmp_path / "results.json"
    for order, exit_code in ((videos, 0), (videos[::-1], 1)):
        arguments = ("--model", model, "--threshold", 0, "--no-video", "--overwrite", "--out", tmp_path)
        assert run("segment", *order, *arguments) == 0
        assert run("evaluate", shapes / "valid.json", "--results", results) == exit_code
    line = error_line(capsys)
    assert f"video 1 is '{videos[1]}', but the ground truth's video 1 is 'valid_00000/00000.jpg'. Segment the" in line


def test_a_test_split_gives_a_submission_and_no_numbers(shapes, tmp_path, capsys):
    truth = json.loads((shapes / "valid.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps([{**a, "score": 0.9} for a in truth.pop("annotations")]))
    (tmp_path / "test.json").write_text(json.dumps(truth))
    arguments = ("evaluate", tmp_path / "test.json", "--results", tmp_path / "results.json")
    assert run(*arguments) == 1
    assert "The ground truth has no annotations" in error_line(capsys)
    assert run(*arguments, "--submission", tmp_path / "results.zip") == 0
    assert "no annotations to measure against" in capsys.readouterr().out and (tmp_path / "results.zip").exists()


def test_evaluate_says_how_many_tracks_ovis_takes(capsys):
    with pytest.raises(SystemExit):
        run("evaluate", "--help")
    assert "default: 10, as published for YouTube-VIS; OVIS is published with 20" in " ".join(
        capsys.readouterr().out.split()
    )


def test_evaluate_runs_a_model_over_a_data_set(shapes, model, tmp_path):
    arguments = ("--images", shapes / "JPEGImages", "--model", model, "--json", tmp_path / "numbers.json")
    assert run("evaluate", shapes / "valid.json", *arguments) == 0
    assert 0 <= json.loads((tmp_path / "numbers.json").read_text())["summary"]["AP"] <= 1


def test_push_and_segment_from_the_hub(loopback_hub, model, video, tmp_path, capsys):
    assert run("push", model, "tester/shapes", "--revision", "task-1", "--license", "apache-2.0") == 0
    assert "/commit/" in capsys.readouterr().out
    files = set(loopback_hub.repos["model", "tester/shapes"].files("task-1"))
    assert {"README.md", "config.json", "model.safetensors", "video_preprocessor_config.json"} <= files
    source = ("--model", "tester/shapes", "--revision", "task-1")
    assert run("segment", video, *source, "--out", tmp_path, "--no-video") == 0
    assert run("segment", video, *source[:3], "task-9", "--out", tmp_path / "other", "--no-video") == 1
    assert "task-9" in error_line(capsys)


def test_push_wants_a_model(tmp_path, capsys):
    assert run("push", tmp_path, "tester/shapes") == 1
    assert "holds no saved model" in error_line(capsys)


def test_validate_lists_problems_with_their_ids(shapes, tmp_path, capsys):
    assert run("validate", shapes / "train.json", "--images", shapes / "JPEGImages") == 0
    assert "no problem found" in capsys.readouterr().out
    content = json.loads((shapes / "train.json").read_text())
    content["annotations"][0]["category_id"] = 999
    (tmp_path / "broken.json").write_text(json.dumps(content))
    assert run("validate", tmp_path / "broken.json") == 1
    assert "annotation 1: category_id 999" in capsys.readouterr().out


def write_masks(shapes, folder):
    """The masks of two videos as PNGs of ids, all ids of a class of their own, and what they are."""
    content = json.loads((shapes / "valid.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    classes = {}
    for video in content["videos"]:
        annotations = [entry for entry in content["annotations"] if entry["video_id"] == video["id"]]
        for frame, file_name in enumerate(video["file_names"]):
            ids = np.zeros((video["height"], video["width"]), dtype=np.uint8)
            for number, annotation in enumerate(annotations, start=1):
                if annotation["segmentations"][frame]:
                    ids[mask_utils.decode(annotation["segmentations"][frame]) > 0] = number
            path = (folder / file_name).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(ids).save(path)
        numbered = enumerate(annotations, start=1)
        classes[path.parent.name] = {number: names[entry["category_id"]] for number, entry in numbered}
    (folder / "classes.json").write_text(json.dumps(classes))
    return folder, folder / "classes.json"


def test_import_of_masks(shapes, tmp_path, capsys):
    masks, classes = write_masks(shapes, tmp_path / "masks")
    train, valid = tmp_path / "new" / "train.json", tmp_path / "new" / "valid.json"
    frames = ("--frames", shapes / "JPEGImages")
    assert run("import-data", "masks", masks, *frames, "--classes", classes, "--out", train) == 0
    assert re.search(r"train.json: 2 videos, 8 frames; objects: \w+ \d", capsys.readouterr().out)
    assert validate_annotations(train, shapes / "JPEGImages") == []
    assert run("import-data", "masks", masks, *frames, "--out", train) == 1
    assert "train.json exists already" in error_line(capsys)
    arguments = ("--out", train, "--valid", valid, "--overwrite")  # without --classes the folders say them
    assert run("import-data", "masks", masks, *frames, *arguments) == 0
    assert "train.json: 1 videos" in (out := capsys.readouterr().out) and "valid.json: 1 videos" in out
    for path in (train, valid):
        assert [category["name"] for category in json.loads(path.read_text())["categories"]] == ["valid"]
        assert validate_annotations(path, shapes / "JPEGImages") == []


def test_import_of_coco(shapes, tmp_path, capsys):
    image = {"id": 1, "width": 64, "height": 48, "file_name": "valid_00000/00000.jpg"}
    annotation = {"id": 5, "image_id": 1, "category_id": 1, "iscrowd": 0}
    annotation |= {"segmentation": [[0, 0, 9, 0, 9, 9]], "bbox": [0, 0, 9, 9]}
    content = {"images": [image], "categories": [{"id": 1, "name": "dog"}], "annotations": [annotation]}
    coco, out = tmp_path / "coco.json", tmp_path / "valid.json"
    coco.write_text(json.dumps(content))
    assert run("validate", coco, "--images", shapes / "JPEGImages") == 0
    assert run("import-data", "coco", coco, "--out", out) == 0
    assert "valid.json: 1 videos, 1 frames; objects: dog 1" in capsys.readouterr().out
    assert validate_ytvis(out, shapes / "JPEGImages") == []
    annotation["image_id"] = 2
    coco.write_text(json.dumps(content))
    assert run("import-data", "coco", coco, "--out", out, "--overwrite") == 1
    assert "image 2, annotation 5: image_id 2 is not in 'images'" in error_line(capsys)
    assert json.loads(out.read_text())["videos"]  # the file of before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["masks", "masks", "--out", "a.json"], "Masks need their frames: give the folder with --frames"),
        (["coco", "coco.json", "--out", "a.json", "--valid", "b.json"], "--valid are for masks; a COCO json says"),
        (
            ["masks", "m", "--frames", "f", "--out", "a.json", "--valid", "a.json"],
            "--out and --valid are the same file",
        ),
        (["masks", "m", "--frames", "f", "--out", "a.json"], "The folder f does not exist"),
        (["coco", "absent.json", "--out", "a.json"], "The annotation file absent.json does not exist"),
    ],
)
def test_import_fails_in_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("import-data", *arguments) == 1
    assert message in error_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_make_data_writes_a_valid_data_set(tmp_path, capsys):
    folder = tmp_path / "shapes"
    sizes = ("--train-videos", 2, "--valid-videos", 1, "--frames", 3, "--size", "32x48")
    assert run("make-data", "moving-shapes", folder, *sizes) == 0
    assert validate_ytvis(folder / "train.json", folder / "JPEGImages") == []
    assert run("make-data", "moving-shapes", folder, *sizes) == 1
    assert "exists and is not an empty folder" in error_line(capsys)
    assert run("make-data", "moving-shapes", tmp_path / "two", *sizes, "--categories", 2) == 0
    categories = json.loads((tmp_path / "two" / "valid.json").read_text())["categories"]
    assert [category["name"] for category in categories] == ["circle", "square"]
    assert run("make-data", "moving-shapes", tmp_path / "many", *sizes, "--categories", 11) == 1
    assert "--categories 11: there are 10 kinds of shapes" in error_line(capsys)


def test_split_data(shapes, tmp_path, capsys):
    content = json.loads((shapes / "valid.json").read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] = 1
    source = tmp_path / "all.json"
    source.write_text(json.dumps(content))
    assert run("split-data", source, "--out", tmp_path / "splits", "--test-share", 0.5) == 0
    out = capsys.readouterr().out
    assert "train_split.json: 1 videos, 4 frames" in out and "test_split.json: 1 videos" in out
    assert run("split-data", source, "--out", tmp_path / "splits") == 1
    assert "train_split.json" in (line := error_line(capsys)) and "exists already" in line
    assert run("split-data", source, "--out", tmp_path / "new", "--test-share", 0) == 1
    assert "test_share is 0.0; give a share" in error_line(capsys)


def test_a_schedule_from_the_command_line(tmp_path, capsys, loopback_hub):
    """Task after task; segmenting with a task's folder; pushing base and task."""
    data = make_moving_shapes(tmp_path / "data", 4, 1, num_frames=3, size=(48, 64), seed=1, categories=["ring", "star"])
    schedule = tiny_schedule(data, classes={"split": "1-1"}).to_dict()
    (tmp_path / "mine.json").write_text(json.dumps(schedule))  # which YAML is, too
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
    assert run("push", runs / "task-0", "tester/mine") == 0 and run("push", runs / "task-1", "tester/mine") == 0
    repo = loopback_hub.repos["model", "tester/mine"]
    assert set(repo.branches) == {"main", "task-1"}
    assert "report.json" in repo.files("main") and "report.json" in repo.files("task-1")


def listed(capsys, folder: Path) -> dict[str, str]:
    """What `--list` printed: a line for each file of the folder, which is named apart from them."""
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
    assert "309 tensors mapped, 3 ignored, 0 unknown." in printed and f"Model: {out}" in printed
    config = json.loads((out / "config.json").read_text())
    assert config["clip_length"] == 3 and config["id2label"]["0"] == "thing 0"
    content = json.loads(report.read_text())
    assert (content["system"], len(content["mapped"]), len(content["ignored"])) == ("genvis", 309, 3)
    assert content["mapped"]["vita_module.class_embed.weight"] == ["video_head.class_predictor.weight"]
    assert run("segment", video, "--model", out, "--out", tmp_path / "tracks", "--no-video") == 0

    assert run(*arguments) == 1
    assert "exists and is not an empty folder" in error_line(capsys)


def test_convert_lists_what_does_not_fit(checkpoints, tmp_path, capsys):
    out, report = tmp_path / "out", tmp_path / "report.json"
    arguments = ("convert", checkpoints / "genvis.pth", "--system", "vita", "--out", out, "--report", report)
    assert run(*arguments) == 1
    captured = capsys.readouterr()
    assert "Unknown, with no place in the model:\n  vita_module.pre_memory_embed_k.weight" in captured.err
    assert "A complete match is --system genvis. Use --allow-missing" in captured.err
    assert len(json.loads(report.read_text())["unknown"]) == 8 and captured.out == "" and not out.exists()
    assert run(*arguments, "--allow-missing") == 0
    assert (out / "model.safetensors").is_file()


def test_convert_cuts_a_model_back_to_a_task(checkpoints, tmp_path):
    arguments = ("--system", "hvpl", "--task", 1, "--set", "calibration_deltas=[0.4, 0.5]", "--out", tmp_path / "out")
    assert run("convert", checkpoints / "hvpl.pth", *arguments) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["task_class_counts"] == [3, 2] and config["calibration_deltas"] == [0.4, 0.5]


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
        (["absent.pth"], "Checkpoint 'absent.pth' not found"),
        (["{file}"], "is not a checkpoint: it begins with b'hello'"),
        (["{genvis}", "--set", "clip_length"], "--set clip_length: must look like KEY=VALUE"),
        (["{genvis}", "--classes", "absent.txt"], "No such file or directory: absent.txt"),
        (["{genvis}", "--classes", "{broken}"], "is no YouTube-VIS json with 'categories'"),
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
def test_convert_wants_to_be_told_system_and_folder(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run("convert", *arguments)
    assert exit_info.value.code == 2 and re.search(message, capsys.readouterr().err)


def test_the_module_runs_as_a_program():
    command = [sys.executable, "-m", "transformers_cvis.cli.main", "--version"]
    assert subprocess.run(command, capture_output=True, text=True).stdout.startswith("transformers-cvis 0.1")
