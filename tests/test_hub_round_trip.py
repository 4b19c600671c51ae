# SPDX-License-Identifier: Apache-2.0
"""A real model, its processor and the pipeline, by revision, through the loopback Hub."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoVideoProcessor, pipeline

from tests.support.helpers import tiny_genvis
from transformers_cvis import (
    AutoModelForVideoInstanceSegmentation,
    CvisVideoProcessor,
    GenVisForVideoInstanceSegmentation,
    push_to_hub,
    segment_video,
)

REPO = "tester/genvis"
EDGES = {"main": 48, "task-1": 64}


@pytest.fixture(scope="module")
def video() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)


@pytest.fixture
def pushed(loopback_hub):
    """Push a model and a processor for each revision, all different; map revision to (model, processor)."""
    pushed = {}
    for seed, (revision, edge) in enumerate(EDGES.items()):
        processor = CvisVideoProcessor(size={"shortest_edge": edge, "longest_edge": 96})
        pushed[revision] = tiny_genvis(seed), processor
        push_to_hub(*pushed[revision], REPO, revision=revision)
    return pushed


def assert_same_tracks(tracks, expected):
    assert len(tracks) == len(expected) > 0
    for track, other in zip(tracks, expected, strict=True):
        # The alignment of weights in memory decides the vector instructions, hence the last bits of a score.
        assert vars(track) == {**vars(other), "score": pytest.approx(other.score, abs=1e-6)}


@pytest.mark.parametrize("revision", list(EDGES))
def test_a_revision_gives_back_its_model_processor_and_pipeline(pushed, revision, video, loopback_hub):
    model, processor = pushed[revision]
    assert loopback_hub.repos["model", REPO].history(revision)[0]["title"].startswith("Upload GenVis")

    loaded = AutoModelForVideoInstanceSegmentation.from_pretrained(REPO, revision=revision)
    weights, others = model.state_dict(), loaded.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert AutoConfig.from_pretrained(REPO, revision=revision).id2label == model.config.id2label
    assert type(AutoModel.from_pretrained(REPO, revision=revision)) is type(model)

    loaded_processor = AutoVideoProcessor.from_pretrained(REPO, revision=revision)
    inputs, expected = (p(video, return_tensors="pt") for p in (loaded_processor, processor))
    assert all(torch.equal(inputs[name], expected[name]) for name in ("pixel_values_videos", "pixel_mask"))

    segmenter = pipeline("video-instance-segmentation", model=REPO, revision=revision)
    result = segmenter(video, threshold=0.0)
    assert_same_tracks(result["tracks"], segment_video(model, processor, video, threshold=0.0).tracks)


def test_the_method_of_the_model_pushes_both_in_one_commit(loopback_hub):
    tiny_genvis().push_to_hub(REPO, video_processor=CvisVideoProcessor(), revision="task-1", license="apache-2.0")
    repo = loopback_hub.repos["model", REPO]
    assert len(repo.history("task-1")) == 2
    assert {"README.md", "config.json", "model.safetensors", "video_preprocessor_config.json"} == set(
        repo.files("task-1")
    )


def test_missing_repository_and_revision_are_named(pushed):
    for load in (AutoModelForVideoInstanceSegmentation, AutoVideoProcessor):
        with pytest.raises(OSError, match="tester/absent"):
            load.from_pretrained("tester/absent")
        with pytest.raises(OSError, match="task-9"):
            load.from_pretrained(REPO, revision="task-9")
    with pytest.raises(OSError, match="task-9"):
        pipeline("video-instance-segmentation", model=REPO, revision="task-9")


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_corrupt_weights_raise_an_error_with_a_remedy(tmp_path, damage):
    tiny_genvis().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes({"truncated": content[:-40], "garbage": b"\xff" * 200, "empty": b""}[damage])
    for model_class in (AutoModelForVideoInstanceSegmentation, GenVisForVideoInstanceSegmentation):
        with pytest.raises(OSError, match="weights of .* are corrupt or incomplete .*force_download"):
            model_class.from_pretrained(tmp_path)


def test_a_checkpoint_with_other_classes_is_refused_with_both_sizes(tmp_path):
    tiny_genvis().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint \(11, 32\), model \(4, 32\)"):
        AutoModelForVideoInstanceSegmentation.from_pretrained(tmp_path, id2label={0: "a", 1: "b", 2: "c"})


def test_a_pipeline_loads_from_the_cache_when_offline(pushed):
    pipeline("video-instance-segmentation", model=REPO, revision="task-1")
    code = (
        "import transformers_cvis, transformers\n"
        f"pipe = transformers.pipeline('video-instance-segmentation', model={REPO!r}, revision='task-1')\n"
        "print(pipe.video_processor.size['shortest_edge'])"
    )
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    run = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["64"]
