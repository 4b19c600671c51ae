# SPDX-License-Identifier: Apache-2.0
"""Content of the wheel, and the requirements in its metadata."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
SOURCE = REPOSITORY / "src" / "transformers_cvis"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    pytest.importorskip("setuptools", minversion="70.1", reason="builds the wheel without a network")
    project, output = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "CITATION.cff"):
        shutil.copy(REPOSITORY / name, project)
    shutil.copytree(SOURCE, project / "src" / "transformers_cvis", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(SOURCE.parent / "transformers_cvis_cli.py", project / "src")
    build = f"import setuptools.build_meta as backend; backend.build_wheel({str(output)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=project, check=True, capture_output=True)
    with zipfile.ZipFile(next(output.glob("*.whl"))) as archive:
        yield archive


def test_the_wheel_is_pure_and_holds_every_file_of_the_package(wheel):
    assert wheel.filename.endswith("-py3-none-any.whl")
    wanted = {
        path.relative_to(SOURCE.parent).as_posix()
        for path in SOURCE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert any(name.endswith(".yaml") for name in wanted)
    assert wanted - set(wheel.namelist()) == set()


@pytest.mark.parametrize(
    ("arguments", "code", "answer"),
    [
        (["--help"], 0, "usage: transformers-cvis [-h]"),
        (["train-continual", "--help"], 0, "usage: transformers-cvis train-continual [-h]"),
        (["--version"], 0, "transformers-cvis 0.1.0"),
        (["segment", "--no-such-option", "a.mp4"], 2, "unrecognized arguments: --no-such-option"),
        (["segment", "absent.mp4"], 1, "VIDEO: No file or folder 'absent.mp4' found"),
        (["train", "absent"], 1, "No recipe 'absent': give a YAML file or one of genvis_moving_shapes"),
    ],
)
def test_the_program_in_the_wheel_answers_without_any_other_package(wheel, tmp_path, arguments, code, answer):
    wheel.extractall(tmp_path)
    # Without installed packages (-S), environment and current folder (-I), torch cannot be imported.
    call = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from transformers_cvis_cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-S", "-I", "-c", call, *arguments]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == code, finished.stderr
    assert answer in finished.stdout + finished.stderr


def test_the_wheel_carries_its_licence_and_no_tests(wheel):
    names = wheel.namelist()
    assert any(name.endswith("/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "examples/"))]


def test_the_metadata_names_dependencies_extras_and_the_program(wheel):
    def read(suffix):
        return wheel.read(next(name for name in wheel.namelist() if name.endswith(suffix))).decode()

    metadata = read("METADATA")
    required = {
        re.split(r"[^A-Za-z0-9_.-]", line.removeprefix("Requires-Dist: "))[0]
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    }
    expected = "torch torchvision transformers datasets huggingface_hub accelerate safetensors pycocotools kernels av"
    expected += " scipy tqdm numpy Pillow PyYAML"
    assert {name.replace("-", "_") for name in required} == set(expected.split())
    extras = set(re.findall(r"^Provides-Extra: (\S+)$", metadata, flags=re.MULTILINE))
    assert extras >= {"test", "train", "demo", "dev"}
    assert "License-Expression: Apache-2.0" in metadata or "License: Apache-2.0" in metadata
    assert "transformers-cvis = transformers_cvis_cli:main" in read("entry_points.txt")


def test_the_embedded_files_are_small():
    sizes = [path.stat().st_size for path in (SOURCE / "assets").rglob("*.safetensors")]
    assert all(size <= 5e6 for size in sizes)
    # The default model, the base with its adapters, and the code.
    assert sum(path.stat().st_size for path in SOURCE.rglob("*") if "__pycache__" not in path.parts) < 14e6


def make(*arguments, **environment) -> str:
    run = subprocess.run(
        ["make", "--dry-run", *arguments], cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | environment
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_every_imported_package_is_required(wheel):
    """Imports that come with another requirement must be required as well."""
    metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith("METADATA"))).decode()
    required = {
        re.split(r"[^A-Za-z0-9_.-]", line)[0].lower().replace("-", "_")
        for line in re.findall(r"^Requires-Dist: ((?!.*extra ==).*)$", metadata, flags=re.MULTILINE)
    }
    imported = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    imported.remove("transformers_cvis_cli")  # of the same wheel
    names = {"PIL": "pillow", "yaml": "pyyaml"}
    missing = {names.get(name, name) for name in imported - sys.stdlib_module_names} - required
    assert missing <= {"torchcodec", "numba"}  # optional: they read videos and compile if installed


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_lint_checks_rules_and_format():
    lines = make("lint").splitlines()
    assert [line.split("-m ")[1] for line in lines if "ruff" in line] == ["ruff check .", "ruff format --check ."]
    assert "make lint" in (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_uses_the_active_environment_or_prepares_one(tmp_path):
    active = str(Path(sys.executable).parent)
    path = os.pathsep.join([active, os.environ["PATH"]])
    assert "python -m pytest" in make("test", PATH=path)
    assert "pip install" not in make("test", PATH=path)

    (tmp_path / ".ci").mkdir()
    for name in ("Makefile", "setup.py", ".ci/satisfied.py"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    fresh = subprocess.run(
        ["make", "--dry-run", "demo", "VIDEO=my clip.mp4"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": "/usr/bin:/bin"},
    ).stdout
    if "pip install" in fresh:  # otherwise the system's Python has all requirements
        assert fresh.index("-m venv .venv") < fresh.index("pip install") < fresh.index("segment")
    assert '"my clip.mp4"' in fresh
    assert "evaluate" not in fresh
