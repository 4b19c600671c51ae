# SPDX-License-Identifier: Apache-2.0
"""`transformers-cvis evaluate`."""

import json

import pytest

from tests.support.command_line import error_line, run


def test_evaluate_scores_perfect_results_with_1(shapes, tmp_path, capsys):
    truth = json.loads((shapes / "valid.json").read_text())
    results = {**truth, "annotations": [{**annotation, "score": 0.9} for annotation in truth["annotations"]]}
    (tmp_path / "results.json").write_text(json.dumps(results))
    numbers, submission = tmp_path / "numbers.json", tmp_path / "submission.zip"
    arguments = ("--results", tmp_path / "results.json", "--json", numbers, "--submission", submission)
    assert run("evaluate", shapes / "valid.json", *arguments) == 0
    assert json.loads(numbers.read_text())["summary"]["AP"] == pytest.approx(1.0)
    assert "AP50" in capsys.readouterr().out
    assert submission.exists()


def test_evaluate_refuses_results_of_other_categories(shapes, tmp_path, capsys):
    truth = json.loads((shapes / "valid.json").read_text())
    truth["categories"][0]["name"] = "dinosaur"
    (tmp_path / "results.json").write_text(json.dumps({**truth, "annotations": []}))
    assert run("evaluate", shapes / "valid.json", "--results", tmp_path / "results.json") == 1
    assert "Category 1 is 'dinosaur' in the results" in error_line(capsys)


def test_evaluate_reads_results_of_segment(shapes, model, tmp_path, capsys):
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
    assert "no annotations to measure against" in capsys.readouterr().out
    assert (tmp_path / "results.zip").exists()


def test_evaluate_states_the_track_limit_of_ovis(capsys):
    with pytest.raises(SystemExit):
        run("evaluate", "--help")
    assert "default: 10, as published for YouTube-VIS; OVIS is published with 20" in " ".join(
        capsys.readouterr().out.split()
    )


def test_evaluate_runs_a_model_over_a_data_set(shapes, model, tmp_path):
    arguments = ("--images", shapes / "JPEGImages", "--model", model, "--json", tmp_path / "numbers.json")
    assert run("evaluate", shapes / "valid.json", *arguments) == 0
    assert 0 <= json.loads((tmp_path / "numbers.json").read_text())["summary"]["AP"] <= 1
