# SPDX-License-Identifier: Apache-2.0
"""What holds for the source tree as a whole: who imports whom, what is never imported, what importing costs."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import transformers_cvis
from tests.support.source_tree import (
    COMMAND_LINE,
    PACKAGE,
    REPOSITORY,
    SOURCE,
    floors,
    import_graph,
    imports,
    parse,
    room,
    source_modules,
)

MOST_LINES_OF_A_FILE = 500
MOST_LINES_OF_A_CLASS = 300

# Each room, and the rooms below it which it may import.
GROUND = {"_version", "files", "geometry", "logs", "messages", "precision", "rle", "ytvis_json"}
LOWEST = {"processing", "kernels", "hub", "assets"} | GROUND
MIDDLE = {"evaluation", "data", "modeling"}
ALLOWED_IMPORTS = {
    "systems": {"modeling", "processing"},
    "cli": {"continual", "training", "pipelines", "conversion"} | MIDDLE | LOWEST,
    "continual": {"training"} | MIDDLE | LOWEST,
    "training": MIDDLE | LOWEST,
    "pipelines": MIDDLE | LOWEST,
    "conversion": MIDDLE | LOWEST,
    "evaluation": {"processing", "hub"} | GROUND,
    "data": {"processing"} | GROUND,
    "modeling": {"kernels", "hub"} | GROUND,
    "processing": GROUND,
    "hub": GROUND,
    "kernels": GROUND,
    "assets": set(),
    **{room: set() for room in GROUND - {"ytvis_json"}},
    "ytvis_json": {"rle"},
    "__main__": set(),
}
SYSTEMS = {"vita", "genvis", "minvis", "hvpl", "mask2former_vis", "crisp", "spvis"}
FORBIDDEN_DEPENDENCIES = {"detectron2", "timm", "cv2"}
RUN_TIME_DEPENDENCIES = {
    *("torch", "torchvision", "transformers", "datasets", "huggingface_hub", "accelerate", "safetensors"),
    *("pycocotools", "kernels", "av", "scipy", "tqdm"),
    *("numpy", "PIL", "yaml", "packaging"),  # which come with those above
}
OPTIONAL_DEPENDENCIES = {"torchcodec", "numba"}


def test_imports_run_downwards_only():
    wrong = []
    for module, path in source_modules().items():
        if room(module) is None:
            continue
        for imported in imports(path):
            if imported == PACKAGE:
                wrong.append(f"{module} imports the package itself")
            target = room(imported)
            if target not in (None, room(module), *ALLOWED_IMPORTS[room(module)]):
                wrong.append(f"{module} -> {imported}")
    assert not wrong, "\n".join(wrong)


# What only `files.py` does. Elsewhere a file would be seen half-written, or lie under a name that nobody clears away.
FILE_PRIMITIVES = {
    *("os.replace", "os.rename", "os.fsync", "hashlib.sha256"),
    *("tempfile.mkstemp", "tempfile.mkdtemp", "tempfile.TemporaryDirectory", "tempfile.NamedTemporaryFile"),
}
FILE_PRIMITIVES_ELSEWHERE = {
    ("data.ytvis", "hashlib.sha256"): "the key of a cached table, which is not a file",
    ("modeling.tasks.adapter_files", "hashlib.sha256"): "hashes tensors, not files",
}
# pycocotools computes with masks in `rle.py`; the evaluator adds nothing but its COCOeval.
PYCOCOTOOLS = {"rle": {"pycocotools.mask"}, "evaluation.video_ap": {"pycocotools.cocoeval.COCOeval"}}


def used_names(path: Path) -> set[str]:
    """Names with their module, `module.name`, that a file uses of modules outside the package."""
    tree, modules, used = parse(path), {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {(alias.asname or alias.name): alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            used |= {f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            used.add(f"{modules[node.value.id]}.{node.attr}")
    return used


def test_only_the_ground_writes_in_place_and_hashes():
    found = {
        (module.removeprefix(f"{PACKAGE}."), name)
        for module, path in source_modules().items()
        for name in used_names(path) & FILE_PRIMITIVES
        if module != f"{PACKAGE}.files"
    }
    assert found == set(FILE_PRIMITIVES_ELSEWHERE)


def test_only_the_ground_and_the_evaluator_know_pycocotools():
    found = {
        module.removeprefix(f"{PACKAGE}."): names
        for module, path in source_modules().items()
        if (names := {name for name in used_names(path) if name.startswith("pycocotools")})
    }
    assert found == PYCOCOTOOLS


def test_systems_do_not_import_each_other():
    wrong = []
    for module, path in source_modules().items():
        parts = module.split(".")
        if parts[1:2] == ["modeling"] and len(parts) > 2 and parts[2] in SYSTEMS:
            others = SYSTEMS - {parts[2]}
            wrong += [f"{module} -> {name}" for name in imports(path) if set(name.split(".")[2:3]) & others]
    assert not wrong, "\n".join(wrong)


def test_modules_import_in_no_circle():
    def module(name: str) -> str | None:
        return name if name in source_modules() else None

    graph = import_graph(module)
    # An __init__ collects the names of its modules; a module that imports a sibling does not depend on it.
    graph = {
        name: {target for target in targets if not name.startswith(f"{target}.")} for name, targets in graph.items()
    }
    floors(graph)  # raises at a circle


def test_rooms_stand_on_floors():
    by_floor = floors(import_graph(room))
    assert by_floor["modeling"] < by_floor["training"] < by_floor["continual"] < by_floor["cli"]


def test_files_and_classes_are_short():
    long = []
    for path in [*source_modules().values(), COMMAND_LINE]:
        name, num_lines = path.relative_to(SOURCE.parent), len(path.read_text(encoding="utf-8").splitlines())
        if num_lines > MOST_LINES_OF_A_FILE:
            long.append(f"{name}: {num_lines} lines")
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef) and node.end_lineno - node.lineno + 1 > MOST_LINES_OF_A_CLASS:
                long.append(f"{name}: class {node.name} has {node.end_lineno - node.lineno + 1} lines")
    assert not long, "\n".join(long)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names(path: Path) -> set[str]:
    """Return the private functions, classes, methods and attributes that a file defines."""
    names = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if is_private(name)}


def test_no_room_uses_private_names_of_another():
    defined: dict[str | None, set[str]] = {}
    for module, path in source_modules().items():
        defined.setdefault(room(module), set()).update(private_names(path))
    wrong = []
    for module, path in source_modules().items():
        own = defined[room(module)]
        others = set().union(*(names for name, names in defined.items() if name != room(module)))
        for node in ast.walk(parse(path)):
            used = set()
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                used = {node.attr}
            elif isinstance(node, ast.ImportFrom) and node.level:
                used = {alias.name for alias in node.names} - {"_version"}
            wrong += [f"{module}: {name}" for name in used if is_private(name) and name in others - own]
    assert not wrong, "\n".join(wrong)


def test_dependencies_are_the_declared_ones():
    known = RUN_TIME_DEPENDENCIES | OPTIONAL_DEPENDENCIES | sys.stdlib_module_names | {PACKAGE, COMMAND_LINE.stem}
    unknown = {
        f"{module}: {name}"
        for module, path in source_modules().items()
        for name in (imported.split(".")[0] for imported in imports(path))
        if name not in known
    }
    assert not unknown


def test_the_command_line_imports_the_standard_library_only():
    """Without what a command needs, which `main` imports by name, help and mistakes answer at once."""
    tree = ast.parse(COMMAND_LINE.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names


def test_only_the_commands_and_the_entry_points_know_the_command_line():
    users = {room(module) for module, path in source_modules().items() if COMMAND_LINE.stem in imports(path)}
    assert users == {"cli", "__main__"}


def repository_files() -> Iterator[Path]:
    listing = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    for name in listing.stdout.decode().splitlines():
        path = REPOSITORY / name
        if path.is_file() and path != Path(__file__):
            yield path


def test_no_file_reaches_out_of_the_repository():
    allowed = REPOSITORY / ".ci" / "run"
    needles = (b"../shared", b"/work/shared", b"/tmp/SPEC")
    assert [
        str(path) for path in repository_files() if path != allowed and any(n in path.read_bytes() for n in needles)
    ] == []


def test_forbidden_dependencies_are_imported_nowhere():
    wrong = []
    for path in repository_files():
        if path.suffix == ".py":
            for node in ast.walk(parse(path)):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                wrong += [f"{path}: {name}" for name in names if name.split(".")[0] in FORBIDDEN_DEPENDENCIES]
    assert not wrong


def test_importing_the_package_is_silent_and_leaves_the_heavy_rooms_alone():
    code = (
        "import sys, transformers_cvis\n"
        "heavy = ['continual', 'training', 'data', 'evaluation', 'conversion', 'cli']\n"
        "assert not [room for room in heavy if f'transformers_cvis.{room}' in sys.modules]"
    )
    run = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_importing_the_package_registers_everything_at_once():
    code = (
        "import transformers_cvis\n"
        "from transformers import AutoConfig, AutoModel\n"
        "from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING\n"
        "from transformers.pipelines import PIPELINE_REGISTRY\n"
        f"for name in {sorted(SYSTEMS)}:\n"
        "    config_class = type(AutoConfig.for_model(name))\n"
        "    model_class = AutoModel._model_mapping[config_class]\n"
        "    auto_class = transformers_cvis.AutoModelForVideoInstanceSegmentation\n"
        "    assert auto_class._model_mapping[config_class] is model_class\n"
        "    assert transformers_cvis.CvisVideoProcessor.__name__ in str(VIDEO_PROCESSOR_MAPPING[config_class])\n"
        "assert 'video-instance-segmentation' in PIPELINE_REGISTRY.get_supported_tasks()\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def public_objects() -> Iterator[tuple[str, object]]:
    for info in pkgutil.walk_packages(transformers_cvis.__path__, f"{PACKAGE}."):
        if info.name.split(".")[-1].startswith("__"):
            continue
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", ()):
            yield f"{info.name}.{name}", getattr(module, name)
    for name in transformers_cvis.__all__:
        yield f"{PACKAGE}.{name}", getattr(transformers_cvis, name)


def test_public_names_exist_and_are_documented():
    undocumented = [
        name
        for name, value in public_objects()
        if (inspect.isclass(value) or inspect.isfunction(value)) and not inspect.getdoc(value)
    ]
    assert not undocumented


def test_every_module_says_what_it_is_for():
    assert [name for name, path in source_modules().items() if not ast.get_docstring(ast.parse(path.read_text()))] == []
