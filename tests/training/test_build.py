# SPDX-License-Identifier: Apache-2.0
"""From a recipe to a model: weights that published stages take from the one before, and missing files."""

from pathlib import Path

import pytest
import torch
from transformers import Mask2FormerConfig, Mask2FormerImageProcessor, PreTrainedConfig

from tests.support.helpers import tiny_detector_config
from transformers_cvis.continual import Schedule
from transformers_cvis.modeling.genvis import GenVisConfig
from transformers_cvis.modeling.hvpl import HvplConfig
from transformers_cvis.modeling.vita import VitaConfig
from transformers_cvis.processing import CvisVideoProcessor
from transformers_cvis.training import Recipe, shipped_recipes
from transformers_cvis.training.build import (
    GENERATED_DATA,
    build_collate,
    build_config,
    build_dataset,
    build_model,
    build_processor,
    keep_processor,
)

NAMES = ["ape", "zebra"]


def config_along_chain(name: str) -> PreTrainedConfig:
    """Return the configuration that a shipped recipe trains, after the recipes that it starts from."""
    recipe = Recipe.load(name)
    start = recipe.model.init_from
    if start in shipped_recipes():
        source = config_along_chain(start)
    else:
        source = Mask2FormerConfig() if start is not None else None
    return build_config(recipe, source, NAMES)


def published(config_class: type, like: PreTrainedConfig, **changes) -> dict:
    """Return the published values with the detector and the classes of `like`."""
    return config_class(id2label=like.id2label, detector_config=like.detector_config, **changes).to_dict()


@pytest.mark.parametrize("data", ["ytvis2019", "ytvis2021", "ovis"])
def test_stages_of_vita_and_genvis(data):
    coco = config_along_chain("vita_r50_coco")
    assert coco.to_dict() == published(VitaConfig, coco, encoder_window_size=0)
    vita = config_along_chain(f"vita_r50_{data}")
    assert vita.to_dict() == published(VitaConfig, vita)
    assert vita.encoder_window_size == 6
    for mode, clip_length in (("online", 1), ("semi_online", 3)):
        genvis = config_along_chain(f"genvis_r50_{data}_{mode}")
        assert genvis.to_dict() == published(GenVisConfig, genvis, clip_length=clip_length)
        assert genvis.encoder_window_size == 0


@pytest.mark.parametrize("window", [0, 6])
def test_the_window_of_a_converted_checkpoint_does_not_matter(window):
    """A converted checkpoint does not record the window of its training."""
    source = VitaConfig(encoder_window_size=window)
    recipes = [Recipe.load(name) for name in shipped_recipes()]
    started = [recipe for recipe in recipes if recipe.system == "vita" and recipe.model.init_from == "vita_r50_coco"]
    assert len(started) == 3
    assert {build_config(recipe, source, NAMES).encoder_window_size for recipe in started} == {6}

    schedule = Schedule.load("hvpl_r50_ytvis2019_20-2")
    hvpl = build_config(schedule.task_recipe(0, [NAMES], schedule.train), source, NAMES)
    assert type(hvpl) is HvplConfig
    assert hvpl.encoder_window_size == 0


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize(
    ("start", "message"),
    [
        (
            "vita_moving_shapes",
            "no such model found on the Hub. It is the name of a recipe .* train that recipe first, .* "
            "`transformers-cvis train vita_moving_shapes`, or give the folder .* `--set model.init_from=FOLDER`",
        ),
        (
            "tester/absent",
            "no such model found on the Hub. Give the folder of a saved model, or the name of one on the Hub",
        ),
        ("/absent/folder", "no such model found on the Hub. Give the folder of a saved model"),
    ],
)
def test_missing_start_is_an_error(start, message, offline, loopback_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    recipe = Recipe.load("genvis_moving_shapes", [f"model.init_from={start}"])
    with pytest.raises(OSError, match=f"^`model.init_from`: {start}: no such folder, and {message}"):
        build_model(recipe, NAMES)


def test_unfinished_start_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vita_moving_shapes" / "checkpoints").mkdir(parents=True)
    with pytest.raises(OSError, match="this folder does not hold a saved model: .* train that recipe first"):
        build_model(Recipe.load("genvis_moving_shapes"), NAMES)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (
            "vita_moving_shapes",
            [],
            "`data.train.0.json`: /.*/moving_shapes/train.json does not exist. Make the data there first: "
            "`transformers-cvis make-data moving-shapes moving_shapes`",
        ),
        (
            "vita_r50_ovis",
            ["data.train.0.use=false", "data.train.1.use=true"],
            "`data.train.1.json`: /.*/datasets/coco/.* does not exist. .* with `--set data.train.1.json=FILE --set ",
        ),
    ],
)
def test_missing_data_is_an_error(name, overrides, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=message):
        build_dataset(Recipe.load(name, overrides))


class TestProcessor:
    """Training, evaluation and the saved model use one processor."""

    def test_default(self):
        recipe = Recipe.load("genvis_moving_shapes")
        processor = build_processor(Recipe.from_dict({**recipe.to_dict(), "model": {}}))
        settings = recipe.evaluation
        size = {"shortest_edge": settings.short_side, "longest_edge": settings.max_size}
        assert processor.to_dict() == CvisVideoProcessor(size=size).to_dict()

    @pytest.mark.parametrize("kind", ["video", "image"])
    def test_pixels_come_from_the_model_that_a_run_starts_from(self, kind, tmp_path):
        pixels = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
        if kind == "video":
            CvisVideoProcessor(size={"shortest_edge": 99}, size_divisor=64, **pixels).save_pretrained(tmp_path)
        else:
            tiny_detector_config().save_pretrained(tmp_path)
            Mask2FormerImageProcessor(size={"shortest_edge": 99}, **pixels).save_pretrained(tmp_path)
        recipe = Recipe.load("genvis_moving_shapes", [f"model.init_from={tmp_path}"])
        processor = build_processor(recipe)
        assert [list(processor.image_mean), list(processor.image_std)] == list(pixels.values())
        assert processor.size_divisor == (64 if kind == "video" else 32)
        assert processor.size["shortest_edge"] == recipe.evaluation.short_side

        batch, names = build_collate(processor)([SAMPLE])
        expected = torch.tensor([(1 - mean) / std for mean, std in zip(*pixels.values(), strict=True)])
        torch.testing.assert_close(batch["pixel_values_videos"][0, 0, :, 0, 0], expected)
        assert batch["pixel_values_videos"].shape[-1] == processor.size_divisor
        assert names == ["video 1"]

    def test_a_resumed_run_needs_no_other_folder(self, tmp_path):
        (tmp_path / "checkpoints").mkdir()
        keep_processor(CvisVideoProcessor(image_mean=[0.1, 0.2, 0.3]), tmp_path / "checkpoints")
        recipe = Recipe.load("genvis_moving_shapes", [f"model.init_from={tmp_path / 'deleted'}"])
        assert list(build_processor(recipe, tmp_path / "checkpoints").image_mean) == [0.1, 0.2, 0.3]

    def test_default_batches_are_those_of_imagenet_to_the_last_bit(self):
        clip = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, -1, -1)
        labels = {**SAMPLE["labels"], "masks": torch.ones(1, 2, 16, 16, dtype=torch.bool)}
        batch, _ = build_collate(CvisVideoProcessor())([{**SAMPLE, "pixel_values_videos": clip, "labels": labels}])
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        assert torch.equal(batch["pixel_values_videos"][0, :, :, :16, :16], (clip / 255 - mean) / std)


SAMPLE = {
    "pixel_values_videos": torch.full((2, 3, 8, 8), 255, dtype=torch.uint8),
    "labels": {
        "class_labels": torch.tensor([0]),
        "ids": torch.zeros(1, 2, dtype=torch.int64),
        "masks": torch.ones(1, 2, 8, 8, dtype=torch.bool),
    },
    "name": "video 1",
}


def test_recipes_for_moving_shapes_share_their_data():
    recipes = [Recipe.load(name) for name in shipped_recipes() if name.endswith("moving_shapes")]
    assert {Path(source.json).parts[0] for recipe in recipes for source in recipe.data.train} == {GENERATED_DATA}
