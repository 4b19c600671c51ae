# SPDX-License-Identifier: Apache-2.0
"""Whole trainings of tiny real models: learning, stages, resuming, processes."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoVideoProcessor

import transformers_cvis
from tests.support.launching import finish, kill_after_first_checkpoint, launch
from tests.support.tiny_run import tiny_recipe, with_fixed_points
from transformers_cvis import AutoModelForVideoInstanceSegmentation
from transformers_cvis.data import SHAPES, make_moving_shapes
from transformers_cvis.modeling.minvis import MinVisForVideoInstanceSegmentation
from transformers_cvis.processing import CvisVideoProcessor
from transformers_cvis.training import Recipe, train
from transformers_cvis.training.build import build_dataset, build_model
from transformers_cvis.training.train import command_line

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_vis.py"
PACKAGE = Path(transformers_cvis.__file__).parent
TINY_RUN = Path(__file__).parents[1] / "support" / "tiny_run.py"
LATER_STAGES = ("genvis", "spvis")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shapes") / "data"
    return make_moving_shapes(folder, num_train_videos=4, num_valid_videos=2, num_frames=6, size=(64, 96), seed=3)


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / "model.safetensors")


def rows(output_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (output_dir / "training_log.jsonl").read_text().splitlines()]


def test_from_scratch_to_an_evaluated_model(shapes, tmp_path):
    """A training lowers its loss, is evaluated, and leaves a folder that loads."""
    valid = {"json": str(shapes / "valid.json"), "images": str(shapes / "JPEGImages")}
    recipe = tiny_recipe(shapes, max_steps=60, checkpoint_every=0, log_every=10)
    recipe = Recipe.from_dict({**recipe.to_dict(), "data": {**recipe.to_dict()["data"], "valid": valid}})
    summary = train(recipe, tmp_path / "vita")
    losses = [row["loss"] for row in rows(tmp_path / "vita") if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]

    model = AutoModelForVideoInstanceSegmentation.from_pretrained(tmp_path / "vita")
    processor = AutoVideoProcessor.from_pretrained(tmp_path / "vita")
    assert list(model.config.id2label.values()) == list(SHAPES)
    assert processor.resized_size(128, 128) == (64, 64)
    saved = json.loads((tmp_path / "vita" / "training_summary.json").read_text())
    assert saved == json.loads(json.dumps(summary))
    assert (saved["steps"], saved["seed"], saved["dataset"]) == (60, 0, valid["json"])
    assert set(saved["metrics"]) >= {"AP", "AP50", "AP75", "AR1", "AR10"}
    assert Recipe.from_dict(saved["recipe"]) == recipe
    assert not list((tmp_path / "vita").glob("*.incomplete"))


@pytest.mark.parametrize(
    ("program", "shown"),
    [
        ("/usr/bin/transformers-cvis", "transformers-cvis"),
        ("C:/Scripts/transformers-cvis.exe", "transformers-cvis"),
        (f"{PACKAGE}/__main__.py", "transformers-cvis"),
        (f"{PACKAGE}/cli/__main__.py", "transformers-cvis"),
        (f"{PACKAGE.parent}/transformers_cvis_cli.py", "transformers-cvis"),
        ("examples/train_vis.py", "train_vis.py"),
    ],
)
def test_the_command_of_a_training_can_be_typed_again(monkeypatch, program, shown):
    monkeypatch.setattr(sys, "argv", [program, "train", "mine.yaml", "--set", "output_dir=my runs"])
    assert command_line() == f"{shown} train mine.yaml --set 'output_dir=my runs'"


def test_mean_and_std_of_the_start_are_used_and_saved(shapes, tmp_path, monkeypatch):
    pixels = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    build_model(tiny_recipe(shapes, "minvis"), list(SHAPES)).save_pretrained(tmp_path / "start")
    CvisVideoProcessor(**pixels).save_pretrained(tmp_path / "start")
    seen = {True: [], False: []}  # key: the model trains; values: minimum and maximum of each clip
    forward = MinVisForVideoInstanceSegmentation.forward

    def noting(self, pixel_values_videos, **inputs):
        clip = pixel_values_videos.flatten(0, 1)
        seen[self.training].append((clip.amin(dim=(0, 2, 3)), clip.amax(dim=(0, 2, 3))))
        return forward(self, pixel_values_videos, **inputs)

    monkeypatch.setattr(MinVisForVideoInstanceSegmentation, "forward", noting)
    recipe = tiny_recipe(shapes, "minvis", model={"init_from": str(tmp_path / "start")}, max_steps=1)
    valid = {"json": str(shapes / "valid.json"), "images": str(shapes / "JPEGImages")}
    train(
        Recipe.from_dict({**recipe.to_dict(), "data": {**recipe.to_dict()["data"], "valid": valid}}), tmp_path / "out"
    )

    mean, std = torch.tensor(pixels["image_mean"]), torch.tensor(pixels["image_std"])
    assert seen[True]
    assert seen[False]
    for lowest, highest in seen[True] + seen[False]:
        assert (lowest >= (0 - mean) / std - 1e-5).all()
        assert (highest <= (1 - mean) / std + 1e-5).all()
    for trains in seen:  # pixels that are so dark would lie below the bound with the mean of ImageNet
        assert min(lowest.min() for lowest, _ in seen[trains]) < 0
    saved = AutoVideoProcessor.from_pretrained(tmp_path / "out")
    assert [list(saved.image_mean), list(saved.image_std)] == list(pixels.values())
    assert (saved.size["shortest_edge"], saved.size["longest_edge"]) == (64, 96)


def test_genvis_starts_from_vita(shapes, tmp_path, caplog):
    train(tiny_recipe(shapes, max_steps=1), tmp_path / "vita")
    source = weights(tmp_path / "vita")
    stage = {"init_from": str(tmp_path / "vita"), "config": {"clip_length": 2}}
    recipe = tiny_recipe(shapes, "genvis", model=stage, max_steps=2)
    recipe.data.num_frames = 4

    model = build_model(recipe, list(SHAPES))
    state = model.state_dict()
    fresh = {name for name in state if name not in source}
    assert fresh
    assert all(".memory_attention." in name for name in fresh)
    assert "class heads" not in caplog.text
    for name in source:
        torch.testing.assert_close(state[name], source[name], rtol=0, atol=0)
    assert (model.config.encoder_window_size, model.config.freeze_detector) == (0, True)
    assert (model.config.num_queries, model.config.clip_length) == (6, 2)

    train(recipe, tmp_path / "genvis")
    trained = weights(tmp_path / "genvis")
    assert all(torch.equal(trained[name], source[name]) for name in source if name.startswith("detector."))
    assert not torch.equal(trained["video_head.class_predictor.weight"], source["video_head.class_predictor.weight"])


def test_stages_of_spvis_start_from_one_another(shapes, tmp_path, caplog):
    """MinVIS, tracker, refiner: each stage starts from the one before and trains only its new parts."""
    detector = tiny_recipe(shapes, "minvis").model.config
    sizes = {name: value for name, value in tiny_recipe(shapes, "spvis").model.config.items() if name not in detector}
    del sizes["refiner"], sizes["freeze_tracker"]
    train(tiny_recipe(shapes, "minvis", max_steps=2), tmp_path / "minvis")
    for stage, start, new, changes in (
        ("online", "minvis", "tracker.", {}),
        ("offline", "online", "refiner.", {"refiner": "spvis"}),
    ):
        model = {"init_from": str(tmp_path / start), "config": {**sizes, **changes}}
        recipe = tiny_recipe(shapes, "spvis", model=model, max_steps=2)
        recipe.data.frame_range = None
        source = weights(tmp_path / start)
        state = build_model(recipe, list(SHAPES)).state_dict()
        assert {name for name in state if name not in source} == {name for name in state if name.startswith(new)}
        assert all(torch.equal(state[name], source[name]) for name in source)
        train(recipe, tmp_path / stage)
        trained = weights(tmp_path / stage)
        assert all(torch.equal(trained[name], source[name]) for name in source)
        assert not torch.equal(trained[f"{new}class_predictor.weight"], state[f"{new}class_predictor.weight"])
    assert "class heads" not in caplog.text
    model = AutoModelForVideoInstanceSegmentation.from_pretrained(tmp_path / "offline")
    assert not model.is_online
    assert not model.untrained_parts


def test_frozen_class_heads_with_new_weights_are_named(shapes, tmp_path, caplog):
    recipe = tiny_recipe(shapes, "spvis")
    build_model(recipe, ["cat"]).save_pretrained(tmp_path)
    caplog.clear()
    recipe = tiny_recipe(shapes, "spvis", model={"init_from": str(tmp_path), "config": {"freeze_tracker": True}})
    state = build_model(recipe, list(SHAPES)).state_dict()
    assert state["tracker.class_predictor.weight"].shape[0] == len(SHAPES) + 1
    assert (
        "class_predictor and tracker.class_predictor will stay random, because this run does not train them"
        in caplog.text
    )


def test_genvis_takes_the_detector_of_minvis(shapes, tmp_path, caplog):
    train(tiny_recipe(shapes, "minvis", max_steps=1), tmp_path)
    head = {name: value for name, value in tiny_recipe(shapes).model.config.items() if name != "detector_config"}
    model = build_model(tiny_recipe(shapes, "genvis", model={"init_from": str(tmp_path), "config": head}), list(SHAPES))
    for name, value in weights(tmp_path).items():
        torch.testing.assert_close(model.state_dict()[f"detector.{name}"], value, rtol=0, atol=0)
    assert "provides the frame detector; the video head starts from random weights" in caplog.text


def test_small_recipes_that_ship_train(shapes, tmp_path):
    """A step of each stage on short videos, from the weights of the stage before."""
    overrides = ["max_steps=1", "batch_size=2", "data.num_workers=0", "data.num_frames=2", "evaluation.short_side=32"]
    for split in ("train", "valid"):
        overrides += [f"data.{split}.json={shapes}/{split}.json", f"data.{split}.images={shapes}/JPEGImages"]
    stages = ["minvis_moving_shapes", "spvis_online_moving_shapes", "spvis_offline_moving_shapes"]
    for name in stages:
        start = Recipe.load(name).model.init_from
        init = [f"model.init_from={tmp_path / start}"] if start else []
        train(name, tmp_path / name, overrides=[*overrides, *init])
        assert (tmp_path / name / "model.safetensors").is_file()
        assert start in (None, *stages)


def test_class_heads_of_other_classes_are_new(shapes, tmp_path, caplog):
    train(tiny_recipe(shapes, max_steps=1), tmp_path / "vita")
    source = weights(tmp_path / "vita")
    recipe = tiny_recipe(shapes, model={"init_from": str(tmp_path / "vita")})
    for names in (["cat", "dog"], list(reversed(SHAPES))):  # another number, and another order
        caplog.clear()
        state = build_model(recipe, names).state_dict()
        assert f"has {len(SHAPES)} classes" in caplog.text
        assert f"this run has {len(names)} ({names[0]}" in caplog.text
        for name, value in source.items():
            same = state[name].shape == value.shape and torch.equal(state[name], value)
            assert same == ("class_predictor" not in name)
        assert state["video_head.class_predictor.weight"].shape[0] == len(names) + 1


@pytest.mark.parametrize(("start", "system"), [("minvis", "hvpl"), ("vita", "hvpl"), ("minvis", "crisp")])
def test_a_base_of_tasks_takes_all_but_class_heads(shapes, tmp_path, start, system):
    train(tiny_recipe(shapes, start, max_steps=1), tmp_path / start)
    source = weights(tmp_path / start)
    config = tiny_recipe(shapes, system).model.config
    if start == "minvis" and system == "hvpl":
        config = {name: value for name, value in config.items() if name != "detector_config"}
    recipe = tiny_recipe(shapes, system, model={"init_from": str(tmp_path / start), "config": config})
    state = build_model(recipe, list(SHAPES)).state_dict()
    prefix = "detector." if start == "minvis" and system == "hvpl" else ""
    left = {name for name in source if prefix + name not in state}
    assert all(".class_predictor." in f".{name}" or ".encoder.layers." in name for name in left), left
    for name in source.keys() - left:
        assert torch.equal(state[prefix + name], source[name]), name


def test_a_checkpoint_of_other_sizes_is_refused(shapes, tmp_path):
    train(tiny_recipe(shapes, max_steps=1), tmp_path / "vita")
    recipe = tiny_recipe(shapes, model={"init_from": str(tmp_path / "vita"), "config": {"dim_feedforward": 64}})
    with pytest.raises(ValueError, match=r"does not fit .* checkpoint \(32.*model \(64"):
        build_model(recipe, list(SHAPES))


def test_another_kind_of_model_is_refused(shapes, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    recipe = tiny_recipe(shapes, model={"init_from": str(tmp_path)})
    with pytest.raises(ValueError, match="is a 'bert' model; vita starts from .*genvis, .*mask2former, .*minvis"):
        build_model(recipe, list(SHAPES))
    train(tiny_recipe(shapes, max_steps=1), tmp_path / "vita")
    recipe = tiny_recipe(shapes, "minvis", model={"init_from": str(tmp_path / "vita")})
    with pytest.raises(
        ValueError, match="is a 'vita' model; minvis starts from minvis, mask2former, .*cvis_frame_detector, spvis"
    ):
        build_model(recipe, list(SHAPES))


def test_a_mask2former_checkpoint_starts_the_detector(shapes, tmp_path, caplog):
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    settings = tiny_recipe(shapes).model.config
    config = Mask2FormerConfig(**settings["detector_config"], num_labels=7)
    Mask2FormerForUniversalSegmentation(config).save_pretrained(tmp_path)
    head = {name: value for name, value in settings.items() if name != "detector_config"}
    model = build_model(tiny_recipe(shapes, model={"init_from": str(tmp_path), "config": head}), list(SHAPES))
    state = model.state_dict()
    for name, value in load_file(tmp_path / "model.safetensors").items():
        if "class_predictor" not in name and "criterion" not in name:
            torch.testing.assert_close(state[f"detector.{name}"], value, rtol=0, atol=0)
    assert "provides the frame detector; the video head starts from random weights" in caplog.text


def test_several_sources_are_mixed_by_ratio(shapes, tmp_path):
    recipe = tiny_recipe(shapes)
    second = make_moving_shapes(
        tmp_path / "more", num_train_videos=2, num_valid_videos=1, num_frames=2, size=(64, 96), seed=4
    )
    source = {"json": str(second / "train.json"), "images": str(second / "JPEGImages"), "ratio": 3.0}
    data = {**recipe.to_dict()["data"], "train": [recipe.to_dict()["data"]["train"][0], source]}
    dataset, names = build_dataset(Recipe.from_dict({**recipe.to_dict(), "data": data}))
    assert names == list(SHAPES)
    lengths = [max(dataset[number]["frame_indices"]) for number in range(40)]
    assert 20 <= sum(length <= 1 for length in lengths) <= 40  # three of four samples come from the short videos


def coco_file(shapes: Path, folder: Path) -> dict:
    """Write a source of images: the first frames of the videos, with polygons and renamed categories."""
    content = json.loads((shapes / "train.json").read_text())
    images = [
        {**{key: video[key] for key in ("id", "width", "height")}, "file_name": video["file_names"][0]}
        for video in content["videos"]
    ]
    annotations = []
    for annotation in content["annotations"]:
        if annotation["bboxes"][0] is not None:
            x, y, width, height = annotation["bboxes"][0]
            polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotation = {**annotation, "image_id": annotation["video_id"], "segmentation": [polygon]}
            annotations.append({**annotation, "bbox": [x, y, width, height], "iscrowd": 0})
    categories = [{**category, "name": f"my {category['name']}"} for category in content["categories"]]
    path = folder / "coco.json"
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    return {
        "json": str(path),
        "images": str(shapes / "JPEGImages"),
        "kind": "images",
        "class_mapping": {category["name"]: category["name"].removeprefix("my ") for category in categories},
    }


def test_joint_training_on_videos_and_images(shapes, tmp_path):
    """Images with other category names are mixed with the videos; a validation set may hold such images as well."""
    images = coco_file(shapes, tmp_path)
    data = tiny_recipe(shapes).to_dict()["data"]
    data |= {"train": [*data["train"], {**images, "ratio": 3.0}], "valid": images}
    recipe = tiny_recipe(shapes, data=data, max_steps=2, checkpoint_every=0)
    dataset, names = build_dataset(recipe)
    assert names == list(SHAPES)
    samples = [dataset[number] for number in range(40)]
    from_images = [sample for sample in samples if sample["name"].startswith("image")]
    assert 20 <= len(from_images) < 40
    assert all(not torch.equal(*sample["pixel_values_videos"]) for sample in from_images)  # rotated one after the other

    summary = train(recipe, tmp_path / "vita")
    assert set(summary["metrics"]) >= {"AP", "AR10"}
    assert (
        list(AutoModelForVideoInstanceSegmentation.from_pretrained(tmp_path / "vita").config.id2label.values()) == names
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_mapping": {"my ringg": "ring"}}, "'my ringg' is not a category of the file. Did you mean 'my ring'?"),
        ({"kind": "videos"}, "It has 'images', so it is of COCO format: `kind: images` in a recipe"),
        ({"json": "absent.json"}, "absent.json does not exist"),
    ],
)
def test_wrong_validation_set_is_refused_before_training(shapes, tmp_path, changes, message):
    data = {**tiny_recipe(shapes).to_dict()["data"], "valid": {**coco_file(shapes, tmp_path), **changes}}
    with pytest.raises((ValueError, FileNotFoundError), match=message.replace("?", r"\?")):
        train(tiny_recipe(shapes, data=data), tmp_path / "vita")
    assert not (tmp_path / "vita").exists()


def test_pre_training_on_images_alone(shapes, tmp_path):
    images = {**coco_file(shapes, tmp_path), "class_mapping": None}
    data = tiny_recipe(shapes).to_dict()["data"]
    data |= {"train": images, "num_frames": 1, "augmentation": {"size": 64}, "image_rotation": None}
    recipe = tiny_recipe(shapes, data=data, max_steps=1, checkpoint_every=0)
    dataset, names = build_dataset(recipe)
    assert names == [f"my {name}" for name in SHAPES]
    assert tuple(dataset[0]["pixel_values_videos"].shape) == (1, 3, 64, 64)
    train(recipe, tmp_path / "vita")
    assert (tmp_path / "vita/model.safetensors").exists()


@pytest.mark.parametrize("system", ["vita", "spvis"])
def test_killed_training_continues_bit_for_bit(shapes, tmp_path, system):
    """Random points in the losses, two loader workers, killed after the first checkpoint; SPVIS with
    dropout, clips that may run backwards, and a matching that changes at half of the steps."""
    overrides = ["data.num_workers=2", "max_steps=8", "data.augmentation.short_sides=[48, 64]"]
    if system == "spvis":
        overrides += ["data.frame_range=null", "data.reverse_probability=0.5"]
    train(tiny_recipe(shapes, system), tmp_path / "whole", overrides=overrides)
    (process,) = launch(TINY_RUN, shapes, system, tmp_path / "killed", *overrides)
    kill_after_first_checkpoint(process, tmp_path / "killed/checkpoints")
    assert not (tmp_path / "killed/model.safetensors").exists()

    summary = train(tiny_recipe(shapes, system), tmp_path / "killed", overrides=overrides)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [row["loss"] for row in rows(tmp_path / "whole")] == [row["loss"] for row in rows(tmp_path / "killed")]
    assert summary["steps"] == 8


@pytest.mark.parametrize(
    "system", ["vita", *(pytest.param(name, marks=pytest.mark.slow) for name in (*LATER_STAGES, "crisp"))]
)
def test_two_processes_equal_one_with_the_whole_batch(shapes, tmp_path, monkeypatch, system):
    """The videos of a batch hold different numbers of objects, so normalisers per process would differ."""
    overrides = ["max_steps=4", "batch_size=2", "optimizer.epsilon=1e-3"]
    if system == "spvis":
        overrides.append("model.config.refiner_dropout=0")
    processes = launch(TINY_RUN, shapes, system, tmp_path / "two", *overrides, processes=2, FIXED_POINTS="1")
    train_module = importlib.import_module("transformers_cvis.training.train")
    monkeypatch.setattr(train_module, "build_model", with_fixed_points(train_module.build_model))
    train(tiny_recipe(shapes, system), tmp_path / "one", overrides=overrides)
    finish(processes)
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for name in one:
            if name.startswith("loss") or name == "gradient_norm":
                assert two[name] == pytest.approx(one[name], rel=1e-3), name
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        assert torch.allclose(one[name], two[name], rtol=1e-3, atol=1e-5), name


def test_mixed_precision_continues_bit_for_bit(shapes, tmp_path):
    """Precision belongs to a process, so each training runs in its own; the one in float32 shows the difference."""
    half = "mixed_precision=bf16"
    finish(launch(TINY_RUN, shapes, "vita", tmp_path / "whole", half, "max_steps=2"))
    for steps in (1, 2):
        finish(launch(TINY_RUN, shapes, "vita", tmp_path / "pieces", half, f"max_steps={steps}"))
    names = sorted(path.name for path in (tmp_path / "pieces/checkpoints").glob("step-*"))
    assert names == ["step-00000001", "step-00000002"]
    whole, pieces = weights(tmp_path / "whole"), weights(tmp_path / "pieces")
    for name, value in whole.items():
        assert value.dtype != torch.bfloat16, name
        assert value.isfinite().all(), name
        assert torch.equal(value, pieces[name]), name

    train(tiny_recipe(shapes, max_steps=2), tmp_path / "full")
    for in_half, in_full in zip(rows(tmp_path / "whole"), rows(tmp_path / "full"), strict=True):
        assert in_half["loss"] == pytest.approx(in_full["loss"], rel=0.05)
        assert in_half["loss"] != in_full["loss"]


@pytest.mark.slow
def test_example_runs_unchanged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finish(launch(EXAMPLE))
    losses = [row["loss"] for row in rows(tmp_path / "build/train_vis/vita") if "loss" in row]
    assert losses[-1] < losses[0]
    assert (tmp_path / "build/train_vis/genvis/model.safetensors").exists()
