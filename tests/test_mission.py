# SPDX-License-Identifier: Apache-2.0
"""The mission, end to end: four systems through the Hub, learning task by task, adapters by revision, Hub kernels."""

import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoVideoProcessor, PreTrainedConfig, PreTrainedModel, pipeline

import transformers_cvis
from tests.support.helpers import (
    build_files,
    local_mapping,
    needs_kernel_repositories,
    tiny_crisp,
    tiny_detector_config,
    tiny_genvis,
    tiny_hvpl,
)
from tests.support.tiny_schedule import TASKS, tiny_schedule
from transformers_cvis import (
    AutoModelForVideoInstanceSegmentation,
    CvisVideoProcessor,
    SpvisConfig,
    SpvisForVideoInstanceSegmentation,
    make_moving_shapes,
    push_to_hub,
    segment_video,
    train_continual,
)
from transformers_cvis.kernels import hub_kernels

REPOSITORY = Path(__file__).parent.parent
TASK = "video-instance-segmentation"


def tiny_spvis() -> SpvisForVideoInstanceSegmentation:
    """Return an online SPVIS with random weights."""
    torch.manual_seed(0)
    sizes = {"tracker_layers": 1, "tracker_dim_feedforward": 32, "filter_dim_feedforward": 32}
    config = SpvisConfig.from_frame_detector(tiny_detector_config(), id2label={0: "disk", 1: "star"}, **sizes)
    return SpvisForVideoInstanceSegmentation(config).eval()


SYSTEMS = {"genvis": tiny_genvis, "hvpl": tiny_hvpl, "crisp": tiny_crisp, "spvis": tiny_spvis}


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    return make_moving_shapes(folder, 4, 2, num_frames=4, size=(64, 96), seed=0, categories=[*chain(*TASKS)])


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_is_a_pretrained_model_and_a_config_class(name):
    model = SYSTEMS[name]()
    assert isinstance(model, PreTrainedModel)
    assert isinstance(model.config, PreTrainedConfig)
    assert model.config.model_type == name
    assert type(model).config_class is type(model.config)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_goes_through_the_hub(name, video, loopback_hub):
    model, processor = SYSTEMS[name](), CvisVideoProcessor(size={"shortest_edge": 48, "longest_edge": 96})
    push_to_hub(model, processor, f"tester/{name}")
    loaded = AutoModelForVideoInstanceSegmentation.from_pretrained(f"tester/{name}")
    loaded_processor = AutoVideoProcessor.from_pretrained(f"tester/{name}")
    assert type(loaded) is type(model)
    assert isinstance(loaded_processor, CvisVideoProcessor)
    assert type(AutoConfig.from_pretrained(f"tester/{name}")) is type(model.config)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), loaded.parameters(), strict=True))

    expected = segment_video(model, processor, video, threshold=0.0).tracks
    tracks = pipeline(TASK, model=f"tester/{name}")(video, threshold=0.0)["tracks"]
    assert len(tracks) == len(expected) > 0
    for track, other in zip(tracks, expected, strict=True):
        assert (track.label_id, track.segmentations) == (other.label_id, other.segmentations)
        assert track.score == pytest.approx(other.score, abs=1e-6)


FRESH_PROCESS = """
import sys, torch, transformers_cvis as cvis
repo, folder = sys.argv[1:]
model = cvis.AutoModelForVideoInstanceSegmentation.from_pretrained(repo, revision="task-2")
base = cvis.AutoModelForVideoInstanceSegmentation.from_pretrained(repo)
base.load_task_adapter(repo, revision="task-1")
local = {task: cvis.AutoModelForVideoInstanceSegmentation.from_pretrained(f"{folder}/task-{task}") for task in (1, 2)}
for ours, theirs in ((base, local[1]), (model, local[2])):
    assert ours.config.id2label == theirs.config.id2label
    weights = theirs.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in ours.state_dict().items())
print(model.config.num_labels, base.config.num_labels)
"""


@pytest.mark.parametrize("method", ["hvpl", "crisp"])
def test_two_tasks_are_learnt_pushed_and_downloaded_by_a_fresh_process(method, shapes, tmp_path, loopback_hub):
    schedule = tiny_schedule(shapes, method, push={"repo": f"tester/{method}"})
    train_continual(schedule, tmp_path, overrides=["recipe.max_steps=1"])
    assert set(loopback_hub.repos["model", f"tester/{method}"].branches) == {"main", "task-1", "task-2"}
    run = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, f"tester/{method}", str(tmp_path)],
        env=os.environ | {"HF_HOME": str(tmp_path / "hf")},  # an empty cache, so everything is downloaded
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["4", "3"]


@needs_kernel_repositories
def test_use_kernels_takes_a_kernel_from_a_repository(tmp_path, monkeypatch):
    mapping = local_mapping(tmp_path / "kernel", build_files(name="cvis-mission-kernel"))
    monkeypatch.setattr(hub_kernels, "KERNEL_MAPPING", mapping)
    tiny_genvis().save_pretrained(tmp_path / "model")
    model = AutoModelForVideoInstanceSegmentation.from_pretrained(tmp_path / "model", use_kernels=True)
    report = model.kernel_report()
    assert report
    assert all(path.startswith("Hub kernel ") for path in report.values())


def test_promised_folders_exist():
    package = Path(transformers_cvis.__file__).parent
    assert all((package / room / "__init__.py").is_file() for room in ("modeling", "processing", "kernels"))
    assert all((REPOSITORY / name).exists() for name in ("examples", "tests", "setup.py"))
