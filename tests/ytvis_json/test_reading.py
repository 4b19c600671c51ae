# SPDX-License-Identifier: Apache-2.0
import pytest

from transformers_cvis.ytvis_json import YTVIS, Problem, check_top_level, read_annotation_json, read_json, refuse


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="The annotation file .*absent.json does not exist"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text('{"videos": [')
    with pytest.raises(ValueError, match="broken.json is not valid json .*is the file whole"):
        read_json(tmp_path / "broken.json")
    (tmp_path / "list.json").write_text("[]")
    assert read_json(tmp_path / "list.json") == []
    with pytest.raises(ValueError, match="list.json holds a list at its top level; an object with 'videos'"):
        read_annotation_json(tmp_path / "list.json")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_json("~/list.json") == []


def test_top_level():
    check_top_level({}, "a.json")
    with pytest.raises(ValueError, match="a.json holds a str at its top level"):
        check_top_level("videos", "a.json")


def test_the_first_problems_are_listed_with_their_places():
    refuse([], "a.json", YTVIS)
    problems = (Problem(f"problem {number}.", video_id=3, annotation_id=number) for number in range(1000))
    with pytest.raises(ValueError, match="^a.json") as caught:
        refuse(problems, "a.json", YTVIS)
    lines = str(caught.value).splitlines()
    assert lines[0] == "a.json breaks the YouTube-VIS format:"
    assert lines[1:6] == [f"  - video 3, annotation {number}: problem {number}." for number in range(5)]
    assert lines[6:] == ["`transformers-cvis validate` lists all problems of a file."]


def test_places():
    assert str(Problem("wrong.")) == "wrong."
    assert str(Problem("wrong.", image_id=7, annotation_id=0)) == "image 7, annotation 0: wrong."
