# SPDX-License-Identifier: Apache-2.0
"""`transformers-cvis push`."""

from tests.support.command_line import error_line, run


def test_push_and_segment_from_the_hub(loopback_hub, model, video, tmp_path, capsys):
    assert run("push", model, "tester/shapes", "--revision", "task-1", "--license", "apache-2.0") == 0
    assert "/commit/" in capsys.readouterr().out
    files = set(loopback_hub.repos["model", "tester/shapes"].files("task-1"))
    assert {"README.md", "config.json", "model.safetensors", "video_preprocessor_config.json"} <= files
    source = ("--model", "tester/shapes", "--revision", "task-1")
    assert run("segment", video, *source, "--out", tmp_path, "--no-video") == 0
    assert run("segment", video, *source[:3], "task-9", "--out", tmp_path / "other", "--no-video") == 1
    assert "task-9" in error_line(capsys)


def test_push_needs_a_model(tmp_path, capsys):
    assert run("push", tmp_path, "tester/shapes") == 1
    assert "holds no saved model" in error_line(capsys)
