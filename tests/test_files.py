# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import os

import pytest

from transformers_cvis.files import (
    TEMPORARY_SUFFIX,
    complete_file,
    complete_folder,
    discard_folder,
    finish_folder,
    incomplete_path,
    remove_incomplete,
    replace_files,
    set_aside,
    sha256,
    temporary_folder,
    write_json,
)


def write_file(path, content=b""):
    with complete_file(path) as file:
        file.write(content)


class TestCompleteFile:
    def test_appears_when_complete(self, tmp_path):
        path = tmp_path / "a.txt"
        path.write_text("old")
        with complete_file(path) as file:
            file.write(b"new")
            assert path.read_text() == "old"
        assert path.read_text() == "new"
        assert os.listdir(tmp_path) == ["a.txt"]
        assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()

    def test_vanishes_on_an_error(self, tmp_path):
        def write_and_fail():
            with complete_file(tmp_path / "a.txt") as file:
                file.write(b"half")
                raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            write_and_fail()
        assert os.listdir(tmp_path) == []

    def test_unwritable(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="Cannot write '.*nowhere/a.txt': No such file or directory"):
            write_file(tmp_path / "nowhere" / "a.txt")
        (tmp_path / "file").touch()
        with pytest.raises(NotADirectoryError, match="Cannot write '.*file/a.txt'"):
            write_file(tmp_path / "file" / "a.txt")
        with pytest.raises(IsADirectoryError, match="Cannot write '.*': it is a folder"):
            write_file(tmp_path)

    def test_full_disk(self, tmp_path, small_disk):
        with pytest.raises(OSError, match="Cannot write '.*a.txt': File too large"):
            write_file(tmp_path / "a.txt", bytes(50_000))
        assert os.listdir(tmp_path) == []


class TestCompleteFolder:
    def test_appears_when_complete(self, tmp_path):
        path = tmp_path / "new" / "out"
        with complete_folder(path) as folder:
            (folder / "a.txt").write_text("a")
            assert not (tmp_path / "new").exists()
        assert os.listdir(path) == ["a.txt"]
        assert os.listdir(tmp_path) == ["new"]
        assert path.stat().st_mode & 0o777 == 0o755

    def test_takes_an_empty_folder(self, tmp_path):
        (tmp_path / "out").mkdir()
        with complete_folder(tmp_path / "out") as folder:
            (folder / "a.txt").write_text("a")
        assert os.listdir(tmp_path / "out") == ["a.txt"]

    def test_vanishes_on_an_error(self, tmp_path):
        def write_and_fail():
            with complete_folder(tmp_path / "new" / "out") as folder:
                (folder / "a.txt").write_text("half")
                raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            write_and_fail()
        assert os.listdir(tmp_path) == []

    def test_refusals(self, tmp_path):
        (tmp_path / "a.txt").write_text("precious")
        with pytest.raises(FileExistsError, match="exists and is not an empty folder"), complete_folder(tmp_path):
            pass
        with pytest.raises(FileExistsError, match="a.txt exists"), complete_folder(tmp_path / "a.txt"):
            pass
        with (
            pytest.raises(OSError, match="Cannot write into the folder .*a.txt: Not a directory"),
            complete_folder(tmp_path / "a.txt" / "out"),
        ):
            pass
        assert os.listdir(tmp_path) == ["a.txt"]
        assert (tmp_path / "a.txt").read_text() == "precious"


class TestReplaceFiles:
    def test_replaces_and_keeps(self, tmp_path):
        for name in ("a.txt", "c.txt"):
            (tmp_path / name).write_text("old")
        with replace_files(tmp_path, last="a.txt") as folder:
            for name in ("a.txt", "b.txt"):
                (folder / name).write_text("new")
            assert (tmp_path / "a.txt").read_text() == "old"
            assert not (tmp_path / "b.txt").exists()
        texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
        assert texts == {"a.txt": "new", "b.txt": "new", "c.txt": "old"}

    def test_last_file_is_replaced_last(self, tmp_path, monkeypatch):
        moved, replace = [], os.replace
        monkeypatch.setattr(os, "replace", lambda source, target: moved.append(target.name) or replace(source, target))
        with replace_files(tmp_path / "new" / "out", last="b.txt") as folder:
            for name in ("a.txt", "b.txt", "c.txt"):
                (folder / name).write_text("new")
        assert moved[-1] == "b.txt"
        assert sorted(moved) == ["a.txt", "b.txt", "c.txt"]

    def test_an_error_changes_nothing(self, tmp_path):
        (tmp_path / "a.txt").write_text("old")

        def write_and_fail():
            with replace_files(tmp_path, last="a.txt") as folder:
                (folder / "a.txt").write_text("half")
                raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            write_and_fail()
        assert os.listdir(tmp_path) == ["a.txt"]
        assert (tmp_path / "a.txt").read_text() == "old"

    def test_files_of_a_killed_process_are_discarded(self, tmp_path):
        left = tmp_path / f".files{TEMPORARY_SUFFIX}"
        left.mkdir()
        (left / "old.txt").touch()
        with replace_files(tmp_path, last="a.txt") as folder:
            (folder / "a.txt").touch()
        assert os.listdir(tmp_path) == ["a.txt"]


class TestSetAside:
    def test_deleted_when_all_is_well(self, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "a.txt").touch()
        (tmp_path / "kept.txt").touch()
        with set_aside([tmp_path / "run"], tmp_path):
            assert not (tmp_path / "run").exists()
            (tmp_path / "run").touch()
        assert sorted(os.listdir(tmp_path)) == ["kept.txt", "run"]
        assert (tmp_path / "run").is_file()

    def test_back_after_an_error(self, tmp_path):
        (tmp_path / "a.txt").write_text("precious")

        def write_and_fail():
            with set_aside([tmp_path / "a.txt"], tmp_path):
                (tmp_path / "a.txt").write_text("half")
                raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            write_and_fail()
        assert os.listdir(tmp_path) == ["a.txt"]
        assert (tmp_path / "a.txt").read_text() == "precious"

    def test_files_set_aside_are_not_removed_as_incomplete(self, tmp_path):
        (tmp_path / "a.txt").touch()
        with set_aside([tmp_path / "a.txt"], tmp_path):
            (aside,) = tmp_path.iterdir()
            assert not aside.name.endswith(TEMPORARY_SUFFIX)

    def test_nothing_to_move(self, tmp_path):
        with set_aside([], tmp_path / "absent"):
            pass
        assert os.listdir(tmp_path) == []


class TestFolderOfSeveralProcesses:
    def test_finished(self, tmp_path):
        path = tmp_path / "step-1"
        incomplete_path(path).mkdir()
        (incomplete_path(path) / "a.txt").write_text("a")
        finish_folder(path)
        assert os.listdir(tmp_path) == ["step-1"]
        assert os.listdir(path) == ["a.txt"]

    def test_files_reach_the_disk_before_the_name_does(self, tmp_path, monkeypatch):
        path, steps, replace = tmp_path / "step-1", [], os.replace
        incomplete_path(path).mkdir()
        (incomplete_path(path) / "a.txt").touch()
        monkeypatch.setattr(os, "fsync", lambda handle: steps.append("flush"))
        monkeypatch.setattr(os, "replace", lambda *paths: steps.append("rename") or replace(*paths))
        finish_folder(path)
        assert steps == ["flush", "rename"]

    def test_discarded(self, tmp_path):
        path = tmp_path / "step-1"
        for folder in (path, incomplete_path(path)):
            folder.mkdir()
            (folder / "a.txt").touch()
        discard_folder(path)
        assert os.listdir(tmp_path) == []

    def test_incomplete_files_are_removed(self, tmp_path):
        for name in ("step-1", "step-2"):
            (tmp_path / name).mkdir()
        incomplete_path(tmp_path / "step-3").mkdir()
        remove_incomplete(tmp_path)
        assert sorted(os.listdir(tmp_path)) == ["step-1", "step-2"]


def test_temporary_folder_is_deleted():
    with temporary_folder() as folder:
        (folder / "a.txt").touch()
    assert not folder.exists()


class TestWriteJson:
    def test_one_line(self, tmp_path):
        write_json(tmp_path / "a.json", {"name": "ä", "values": [1, None]})
        assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{"name": "ä", "values": [1, null]}\n'

    def test_for_people(self, tmp_path):
        write_json(tmp_path / "a.json", {"values": [1]}, indent=2)
        assert (tmp_path / "a.json").read_text() == '{\n  "values": [\n    1\n  ]\n}\n'

    def test_values_outside_json_are_refused(self, tmp_path):
        (tmp_path / "a.json").write_text("{}")
        with pytest.raises(TypeError, match="not JSON serializable"):
            write_json(tmp_path / "a.json", {"a": 1, "b": {2}})
        assert os.listdir(tmp_path) == ["a.json"]
        assert json.loads((tmp_path / "a.json").read_text()) == {}

    def test_unwritable(self, tmp_path):
        with pytest.raises(OSError, match="Cannot write .*absent"):
            write_json(tmp_path / "absent" / "a.json", [])


def test_sha256(tmp_path):
    content = b"0123456789" * 200_000  # more than one read
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def _umask():
    umask = os.umask(0)
    os.umask(umask)
    return umask
