# SPDX-License-Identifier: Apache-2.0
"""`transformers-cvis segment` from a user's view: output, files and failures."""

import json
import re
from pathlib import Path

import av
import pytest
from PIL import Image

from tests.support.command_line import error_line, run
from transformers_cvis.data import validate_ytvis


def test_segment_writes_video_sheet_and_json(video, model, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert run("segment", video, "--model", model, "--threshold", 0, "--out", out) == 0
    captured = capsys.readouterr()
    found = re.search(rf"{re.escape(str(video))}: (\d+) tracks? in 4 frames of 64x48", captured.out)
    num_tracks = int(found[1])
    assert num_tracks >= 1
    assert captured.out.count("\n  ") == num_tracks + 1
    assert "score" in captured.out

    assert sorted(path.name for path in out.iterdir()) == ["results.json", "valid_00000.mp4", "valid_00000.png"]
    with av.open(str(out / "valid_00000.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 4
    assert Image.open(out / "valid_00000.png").width > 64
    results = json.loads((out / "results.json").read_text())
    assert len(results["annotations"]) == num_tracks
    assert all(0 <= a["score"] <= 1 for a in results["annotations"])
    assert validate_ytvis(out / "results.json") == []


def test_existing_results_are_replaced_only_on_request(video, model, tmp_path, capsys):
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


def test_several_videos_get_separate_names(video, model, shapes, tmp_path):
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


def test_broken_video_does_not_stop_the_others(video, model, tmp_path, capsys):
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
        (["absent.mp4"], "No file or folder 'absent.mp4' found"),
        ([__file__], "cannot be opened as a video"),
        (["VIDEO", "--out", "{tmp}/file/out"], "Cannot write into the folder .*file"),
        (["VIDEO", "--json", "out.mp4"], "must end in .json"),
        (["VIDEO", "--model", "{tmp}/absent"], "--model: No folder '.*/absent' found. Give the folder of a saved"),
        (
            ["VIDEO", "--model", "tester/absent"],
            "--model tester/absent: .* Give the folder of a saved model, or the name",
        ),
        (
            ["VIDEO", "--model", "{tmp}"],
            "--model .*: this folder does not hold a saved model: config.json is missing. Give",
        ),
        (["VIDEO", "--model", "MODEL", "--device", "gpu"], "--device gpu: use cpu, cuda, cuda:1 or mps"),
        (["VIDEO", "--model", "MODEL", "--device", "cuda:0"], "torch finds no GPU"),
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
    assert "--model tester/absent: no such folder, and no such model found on the Hub." in line
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
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_models_of_other_kinds_are_refused(video, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    assert run("segment", video, "--model", tmp_path, "--out", tmp_path / "out") == 1
    assert "a 'resnet' model, not a video instance segmentation model" in error_line(capsys)


def test_a_mask2former_checkpoint_of_the_hub_segments_a_video(video, mask2former_on_the_hub, tmp_path):
    arguments = ("--model", mask2former_on_the_hub, "--threshold", 0, "--out", tmp_path)
    assert run("segment", video, *arguments) == 0
    content = json.loads((tmp_path / "results.json").read_text())
    assert {category["name"] for category in content["categories"]} == {"person", "dog"}
    assert content["annotations"]


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(FileNotFoundError):
        run("segment", "absent.mp4", "--debug", "--out", tmp_path, "--no-video")
