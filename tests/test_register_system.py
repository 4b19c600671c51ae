# SPDX-License-Identifier: Apache-2.0
"""The example of CONTRIBUTING: a system from outside the package, in everything that the package does with systems."""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModel, AutoVideoProcessor, pipeline

import transformers_cvis_cli as cli
from tests.support.helpers import tiny_detector_config
from tests.support.model_tester import CommonTests, FrameByFrameTests
from tests.support.tiny_run import tiny_recipe
from tests.support.video_data import LABELS
from transformers_cvis import (
    AutoModelForVideoInstanceSegmentation,
    CvisVideoProcessor,
    MinVisConfig,
    MinVisForVideoInstanceSegmentation,
    Recipe,
    demo_video_path,
    make_moving_shapes,
    register_system,
    segment_video,
    train,
)

MODULE = "refined_minvis_from_outside"
CONTRIBUTING = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
FOLDER = tempfile.TemporaryDirectory()
(Path(FOLDER.name) / f"{MODULE}.py").write_text(re.search(r"```python\n(.*?)```", CONTRIBUTING, re.DOTALL)[1])
sys.path.append(FOLDER.name)
outside = importlib.import_module(MODULE)


class TestOutside(FrameByFrameTests, CommonTests):
    model_class = outside.RefinedMinVisForVideoInstanceSegmentation

    def config(self, **changes):
        detector = tiny_detector_config(num_queries=5, freeze_batch_norm=False).to_dict()
        del detector["model_type"]
        return outside.RefinedMinVisConfig(**{**detector, "id2label": LABELS, **changes})


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    return make_moving_shapes(folder, 2, 1, num_frames=3, size=(64, 96), seed=0, categories=["star", "ring"])


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory) -> Path:
    """Folder of a model that the trainer made from a recipe file."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = {**tiny_recipe(shapes, "minvis", max_steps=1).to_dict(), "system": "refined_minvis"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(recipe))))
    train(Recipe.load(folder / "recipe.yaml", ["model.config.refinement_weight=2.0"]), folder / "out")
    return folder / "out"


def test_trainer_and_recipe(trained):
    model = AutoModelForVideoInstanceSegmentation.from_pretrained(trained)
    assert type(model) is outside.RefinedMinVisForVideoInstanceSegmentation
    assert model.config.refinement_weight == 2
    assert torch.isfinite(model.refinement.weight).all()


def test_auto_classes(trained):
    assert type(AutoConfig.from_pretrained(trained)) is outside.RefinedMinVisConfig
    assert type(AutoModel.from_pretrained(trained)) is outside.RefinedMinVisForVideoInstanceSegmentation
    assert isinstance(AutoVideoProcessor.from_pretrained(trained), CvisVideoProcessor)


def test_pipeline(trained):
    result = pipeline("video-instance-segmentation", model=str(trained))(demo_video_path(), max_frames=2, threshold=0.0)
    model = AutoModelForVideoInstanceSegmentation.from_pretrained(trained)
    processor = AutoVideoProcessor.from_pretrained(trained)
    expected = segment_video(model, processor, demo_video_path(), max_frames=2, threshold=0.0).tracks
    assert [track.segmentations for track in result["tracks"]] == [track.segmentations for track in expected]


def test_weights_of_another_system_start_it(tmp_path):
    config = tiny_detector_config()
    MinVisForVideoInstanceSegmentation(MinVisConfig.from_frame_detector(config)).save_pretrained(tmp_path)
    model = outside.RefinedMinVisForVideoInstanceSegmentation.from_pretrained(tmp_path, refinement_weight=3.0)
    assert model.untrained_parts == ("refinement",)
    assert model.config.refinement_weight == 3


def test_command_line(trained, tmp_path, capsys):
    arguments = ["segment", str(demo_video_path()), "--model", str(trained), "--out", str(tmp_path), "--no-video"]
    assert cli.main([*arguments, "--max-frames", "2", "--threshold", "0"]) == 0
    assert (tmp_path / "results.json").is_file()


def test_an_installed_package_is_found_by_its_entry_point(trained, tmp_path):
    """A fresh process that never heard of the module."""
    information = tmp_path / "refined_minvis-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: refined-minvis\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[transformers_cvis.systems]\nrefined_minvis = {MODULE}\n")
    path = os.pathsep.join([str(tmp_path), FOLDER.name, *filter(None, [os.environ.get("PYTHONPATH")])])
    code = (
        "from transformers_cvis import AutoModelForVideoInstanceSegmentation as Auto\n"
        f"print(type(Auto.from_pretrained({str(trained)!r})))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "RefinedMinVisForVideoInstanceSegmentation" in run.stdout


def test_an_entry_point_that_fails_is_a_warning(tmp_path):
    information = tmp_path / "broken-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[transformers_cvis.systems]\nbroken = no_such_module\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = subprocess.run(
        [sys.executable, "-c", "import transformers_cvis"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "The system 'broken' cannot be loaded: ModuleNotFoundError" in run.stderr


def test_a_name_belongs_to_one_system():
    class Other(MinVisConfig):
        model_type = "vita"

    with pytest.raises(ValueError, match="The `model_type` 'vita' of Other is that of VitaConfig: choose another"):
        register_system(Other, MinVisForVideoInstanceSegmentation)

    class Nameless(MinVisConfig):
        model_type = ""

    with pytest.raises(ValueError, match="Nameless needs a `model_type`, the name of its system"):
        register_system(Nameless, MinVisForVideoInstanceSegmentation)
