# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from tests.support.standin import RECIPE
from transformers_cvis.data import (
    CLASS_MAPPINGS,
    ClipAugmentation,
    LargeScaleJitter,
    RandomCropPath,
    RandomRotation,
    mask2former_augmentation,
)
from transformers_cvis.training import Recipe, shipped_recipes


def recipe_with(**changes) -> Recipe:
    return Recipe.from_dict({**RECIPE, **changes})


def test_numbers_written_as_yaml_reads_them():
    recipe = recipe_with(optimizer={"learning_rate": "5e-5", "weight_decay": 0}, mixed_precision=False)
    assert recipe.optimizer.learning_rate == 5e-5
    assert recipe.optimizer.weight_decay == 0.0
    assert recipe.mixed_precision == "no"


def test_round_trip():
    recipe = recipe_with()
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_one_source_needs_no_list():
    data = {**RECIPE["data"], "train": {"json": "a.json", "images": "a"}}
    assert recipe_with(data=data).data.train[0].json == "a.json"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batchsize": 4}, "unknown key 'batchsize' at the top level. Did you mean 'batch_size'"),
        ({"xyzzy": 4}, "unknown key 'xyzzy' at the top level. The keys are system, .*, max_steps"),
        (
            {"optimizer": {"learning_rat": 1.0}},
            "unknown key 'learning_rat' at `optimizer`. Did you mean 'learning_rate'",
        ),
        ({"optimizer": {}}, "`optimizer` lacks the required key 'learning_rate'"),
        ({"max_steps": "many"}, "`max_steps` must be of type int, got 'many'"),
        ({"max_steps": True}, "`max_steps` must be of type int, got True"),
        ({"max_steps": 0}, "`max_steps` must be at least 1, got 0"),
        ({"system": "vitta"}, "`system` must be one of 'vita', 'genvis', .*'minvis', .*, got 'vitta'"),
        ({"data": []}, "`data` must be a mapping"),
        ({"schedule": {}}, "unknown key 'schedule' at the top level. Did you mean 'learning_rate_schedule'"),
        ({"learning_rate_schedule": {"milestones": 3}}, "`learning_rate_schedule.milestones` must be a list, got 3"),
        ({"batch_size": 3, "gradient_accumulation_steps": 2}, "must be a multiple of `gradient_accumulation_steps`"),
        (
            {"data": {**RECIPE["data"], "train": [{"json": "-", "images": "-", "ratio": 0}]}},
            "ratio` must be above 0",
        ),
    ],
)
def test_errors_name_the_key(changes, message):
    with pytest.raises(ValueError, match=message):
        recipe_with(**changes)


def test_overrides():
    overrides = ["data.train.0.json=/data/train.json", "optimizer.learning_rate=1e-3", "model.config.num_queries=7"]
    recipe = Recipe.load(recipe_with(), overrides)
    assert recipe.data.train[0].json == "/data/train.json"
    assert recipe.optimizer.learning_rate == 1e-3
    assert recipe.model.config == {"num_queries": 7}


@pytest.mark.parametrize("key", ["data.train.json", "data.train.0.json"])
def test_overrides_of_a_single_source(tmp_path, key):
    written = {**RECIPE, "data": {**RECIPE["data"], "train": RECIPE["data"]["train"][0]}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(written))
    for source in (tmp_path / "recipe.yaml", recipe_with()):
        assert Recipe.load(source, [f"{key}=/data/train.json"]).data.train[0].json == "/data/train.json"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_steps", "must look like key=value"),
        ("data.train.1.json=a", "'1' must be a number from 0 to 0"),
        ("max_steps.more=1", "'max_steps' is a value"),
        ("max_stepz=1", "Did you mean 'max_steps'"),
    ],
)
def test_override_errors(override, message):
    with pytest.raises(ValueError, match=message):
        Recipe.load(recipe_with(), [override])


def test_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="give a YAML file or one of .*vita_r50_ovis"):
        Recipe.load(tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("system: [")
    with pytest.raises(ValueError, match="broken.yaml is not valid YAML"):
        Recipe.load(broken)
    broken.write_text("- system")
    with pytest.raises(ValueError, match="must be a mapping of keys to values, got list"):
        Recipe.load(broken)


def with_sources(*sources, **data) -> Recipe:
    return recipe_with(data={**RECIPE["data"], "train": [*sources], **data})


def test_sources_of_images_with_other_classes():
    videos = {"json": "a.json", "images": "a"}
    images = {"json": "b.json", "images": "b", "kind": "images", "class_mapping": {"person": "human"}, "ratio": 0.5}
    recipe = with_sources(videos, images, {**images, "class_mapping": "ovis", "use": False})
    assert [source.kind for source in recipe.data.train] == ["videos", "images", "images"]
    assert recipe.data.train[1].class_mapping == {"person": "human"}
    assert recipe.data.train[2].class_mapping == "ovis"
    assert recipe.data.used_sources == recipe.data.train[:2]
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert len(Recipe.load(recipe, ["data.train.2.use=true"]).data.used_sources) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "image"}, "`data.train.0.kind` must be one of 'videos', 'images', got 'image'"),
        ({"class_mapping": ["person"]}, r"`data.train.0.class_mapping` must be of type str or dict, got \['person'\]"),
        ({"use": False}, "`data.train` must have at least one source"),
    ],
)
def test_errors_of_sources(changes, message):
    with pytest.raises(ValueError, match=message):
        with_sources({"json": "a.json", "images": "a", **changes})


def test_augmentation_is_one_of_two_kinds():
    """The fields of a source tell its kind."""
    videos = {"json": "a.json", "images": "a"}
    jittered = with_sources(videos, augmentation={"size": 64, "scale": [0.5, 1]}, image_rotation=None)
    assert jittered.data.augmentation == LargeScaleJitter(64, (0.5, 1.0))
    assert jittered.data.image_rotation is None
    assert Recipe.from_dict(jittered.to_dict()) == jittered
    plain = with_sources(videos, augmentation={"flip_probability": 0.0}, image_rotation={"max_angle": 5})
    assert plain.data.augmentation == ClipAugmentation(flip_probability=0.0)
    assert plain.data.image_rotation == RandomRotation(5.0)
    with pytest.raises(ValueError, match="unknown key 'short_side' at `data.augmentation`. Did you mean 'short_sides'"):
        with_sources(videos, augmentation={"short_side": [64]})


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load(name):
    recipe = Recipe.load(name)
    assert recipe.system == "minvis" if "segmenter" in name else name.startswith(f"{recipe.system}_")
    assert recipe.output_dir == name
    start = recipe.model.init_from
    # Published stages start from one another, the first of them from a checkpoint that is converted.
    assert start in (None, "vita_r50_coco", "mask2former_r50_coco", *shipped_recipes())


@pytest.mark.parametrize(
    ("name", "steps", "milestones", "frames", "frame_range"),
    [
        ("vita_r50_ytvis2019", 140_000, [75_000], 5, 20),
        ("vita_r50_ytvis2021", 187_500, [100_000], 6, 8),
        ("vita_r50_ovis", 150_000, [50_000, 125_000], 6, 8),
        ("genvis_r50_ytvis2019_online", 15_000, [10_000], 5, 6),
        ("genvis_r50_ytvis2019_semi_online", 15_000, [10_000], 15, 12),
        ("genvis_r50_ytvis2021_online", 90_000, [50_000], 5, 6),
        ("genvis_r50_ytvis2021_semi_online", 90_000, [50_000], 15, 12),
        ("genvis_r50_ovis_online", 140_000, [100_000], 5, 6),
        ("genvis_r50_ovis_semi_online", 140_000, [100_000], 15, 12),
    ],
)
def test_published_hyper_parameters(name, steps, milestones, frames, frame_range):
    recipe = Recipe.load(name)
    assert (recipe.max_steps, recipe.learning_rate_schedule.milestones, recipe.batch_size) == (steps, milestones, 8)
    assert (recipe.data.num_frames, recipe.data.frame_range) == (frames, frame_range)
    optimizer = recipe.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.max_gradient_norm) == (5e-5, 0.05, 0.01)
    assert (optimizer.betas, optimizer.epsilon, optimizer.backbone_factor) == ([0.9, 0.999], 1e-8, 0.1)
    assert recipe.evaluation.top_k == (20 if "ovis" in name else 10)


@pytest.mark.parametrize(
    ("name", "ratio"),
    [
        ("vita_r50_ytvis2019", 0.75),
        ("vita_r50_ytvis2021", 0.8),
        ("vita_r50_ovis", 0.25),
        *((f"genvis_r50_ytvis2019_{mode}online", 0.75) for mode in ("", "semi_")),
        *((f"genvis_r50_ytvis2021_{mode}online", 0.75) for mode in ("", "semi_")),
        *((f"genvis_r50_ovis_{mode}online", 0.25) for mode in ("", "semi_")),
    ],
)
def test_published_mixtures_with_coco(name, ratio):
    """Recipes ship with the videos alone; COCO, whose share is published relative to 1, is optional."""
    (videos,) = Recipe.load(name).data.used_sources
    assert videos.kind == "videos"
    assert videos.class_mapping is None
    videos, images = Recipe.load(name, ["data.train.1.use=true"]).data.used_sources
    assert (images.kind, images.ratio, videos.ratio) == ("images", 1.0, ratio)
    assert images.class_mapping == name.split("_")[2]
    assert images.class_mapping in CLASS_MAPPINGS


def test_published_pre_training_on_coco():
    recipe = Recipe.load("vita_r50_coco")
    assert (recipe.max_steps, recipe.batch_size) == (368_750, 16)
    assert recipe.learning_rate_schedule.milestones == [327_778, 355_092]
    assert recipe.data.augmentation == LargeScaleJitter()
    assert recipe.data.num_frames == 1
    assert recipe.data.image_rotation is None
    assert recipe.data.train[0].class_mapping is None
    assert recipe.optimizer.learning_rate == 1e-4
    assert recipe.model.config == {"encoder_window_size": 0}


@pytest.mark.parametrize(("data", "steps", "step"), [("ytvis2019", 6, 4), ("ytvis2021", 8, 5.5), ("ovis", 10, 7)])
def test_published_hyper_parameters_of_minvis(data, steps, step):
    recipe = Recipe.load(f"minvis_r50_{data}")
    assert (recipe.max_steps, recipe.learning_rate_schedule.milestones) == (1000 * steps, [1000 * step])
    assert (recipe.batch_size, recipe.data.num_frames, recipe.optimizer.learning_rate) == (32, 1, 1e-4)
    assert recipe.data.augmentation == mask2former_augmentation()
    assert (recipe.evaluation.short_side, recipe.evaluation.top_k) == (360, 10)


@pytest.mark.parametrize("data", ["ytvis2019", "ytvis2021", "ytvis2022", "ovis"])
@pytest.mark.parametrize(
    ("stage", "start", "frames", "frame_range", "reversed_share"),
    [
        ("segmenter", None, 1, 0, 0.0),
        ("online", "segmenter", 5, None, 0.0),
        ("offline", "online", 21, None, 0.5),
    ],
)
def test_published_hyper_parameters_of_spvis(data, stage, start, frames, frame_range, reversed_share):
    recipe = Recipe.load(f"spvis_{stage}_r50_{data}")
    long = stage != "segmenter" and data != "ovis"
    assert (recipe.max_steps, recipe.learning_rate_schedule.milestones) == (
        (40_000, [28_000]) if long else (20_000, [14_000])
    )
    assert (recipe.batch_size, recipe.optimizer.learning_rate, recipe.seed) == (8, 1e-4, 42)
    clips = recipe.data
    assert (clips.num_frames, clips.frame_range, clips.reverse_probability) == (frames, frame_range, reversed_share)
    assert clips.augmentation.short_sides == (240, 360, 480)
    assert clips.augmentation.max_size == (1333 if data == "ovis" else 768)
    assert clips.augmentation.crop == (RandomCropPath() if stage == "offline" or data == "ytvis2019" else None)
    assert recipe.model.init_from == (f"spvis_{start}_r50_{data}" if start else "mask2former_r50_coco")
    assert recipe.model.config == ({"refiner": "spvis"} if stage == "offline" else {})
    assert recipe.evaluation.top_k == (20 if data == "ovis" else 10)
    assert ("ytvis_2021" in clips.train[0].json) == (data in ("ytvis2021", "ytvis2022"))


@pytest.mark.parametrize(("year", "steps", "milestone"), [(2019, 6000, 4000), (2021, 8000, 5500)])
def test_published_hyper_parameters_of_mask2former_vis(year, steps, milestone):
    recipe = Recipe.load(f"mask2former_vis_r50_ytvis{year}")
    assert (recipe.max_steps, recipe.learning_rate_schedule.milestones, recipe.batch_size) == (steps, [milestone], 16)
    assert (recipe.data.num_frames, recipe.data.frame_range, recipe.optimizer.learning_rate) == (2, 20, 1e-4)
    assert str(year) in recipe.data.train[0].json
