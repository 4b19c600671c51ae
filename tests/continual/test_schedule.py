# SPDX-License-Identifier: Apache-2.0
"""Schedules: reading them, assigning classes to tasks, and those that ship with the package."""

import pytest

from transformers_cvis.continual import Schedule, shipped_schedules
from transformers_cvis.continual.schedule import ClassesSettings
from transformers_cvis.data import ClipAugmentation, RandomCropPath, RandomRotation
from transformers_cvis.training.recipe import SourceSettings

NAMES = ["dog", "car", "bird", "cow", "ant", "bee"]


@pytest.mark.parametrize(
    ("split", "expected"), [("2-2", [2, 2, 2]), ("4-1", [4, 1, 1]), ("6-1", [6]), ("3-3", [3, 3]), ("1-5", [1, 5])]
)
def test_a_split_divides_the_classes(split, expected):
    tasks = ClassesSettings(split=split).assign(NAMES, seed=0)
    assert [len(task) for task in tasks] == expected
    assert [name for task in tasks for name in task] == NAMES


def test_orders_of_classes():
    assert ClassesSettings(split="2-2", order="alphabetical").assign(NAMES, seed=0)[0] == ["ant", "bee"]
    first, same, other = (ClassesSettings(split="2-2", order="random").assign(NAMES, seed) for seed in (0, 0, 1))
    assert first == same != other
    assert sorted(name for task in first for name in task) == sorted(NAMES)


def test_named_tasks_may_leave_classes_out():
    assert ClassesSettings(tasks=[["cow"], ["ant", "dog"]]).assign(NAMES, seed=0) == [["cow"], ["ant", "dog"]]


def test_recipes_of_tasks():
    schedule = Schedule.load(
        "hvpl_r50_ytvis2019_20-2", ["tasks.2.max_steps=7", "train.1.use=true", "classes.mode=sequential"]
    )
    tasks = [["person"], ["dog"], ["cat", "cow"]]
    recipes = [schedule.task_recipe(number, tasks, schedule.train) for number in range(3)]
    assert [recipe.max_steps for recipe in recipes] == [80_000, 10_000, 7]
    assert [recipe.model.init_from for recipe in recipes] == ["vita_r50_coco", None, None]
    assert recipes[2].data.class_names == ["person", "dog", "cat", "cow"]
    assert {recipe.seed for recipe in recipes} == {42}
    assert {recipe.system for recipe in recipes} == {"hvpl"}
    videos, images = recipes[1].data.train
    assert videos.classes == images.classes
    assert videos.classes.keep == ("person", "dog")
    assert videos.classes.require == ("dog",)
    assert videos.classes.exclude == ("cat", "cow")
    assert (images.kind, images.class_mapping) == ("images", "ytvis2019")


def test_prompts_of_a_task():
    for overrides, expected in (
        (["num_prompts=3"], 3),
        (["num_prompts=classes"], 2),
        (["num_prompts=classes", "method=finetune"], 0),
    ):
        schedule = Schedule.load("crisp_r50_ytvis2019_20-4", overrides)
        assert schedule.prompts_of(["dog", "cat"]) == expected
        assert Schedule.from_dict(schedule.to_dict()) == schedule


def test_learning_all_at_once_passes_over_later_tasks():
    schedule = Schedule.load("crisp_r50_ytvis2019_20-4", ["method=joint", "tasks.2.max_steps=7"])
    assert schedule.task_recipe(0, [["dog", "cat"]], schedule.train).max_steps == 1500


PUBLISHED = {
    # classes, tasks after the base, prompts, steps of base (milestone) and increment (milestone)
    "hvpl_r50_ytvis2019_20-2": (40, 10, 5, 80_000, 55_000, 10_000, None),
    "hvpl_r50_ytvis2019_20-5": (40, 4, 10, 80_000, 55_000, 30_000, None),
    "hvpl_r50_ytvis2021_20-4": (40, 5, 10, 120_000, 85_000, 22_000, None),
    "hvpl_r50_ytvis2021_30-10": (40, 1, 10, 120_000, 85_000, 30_000, None),
    "hvpl_r50_ovis_15-5": (25, 2, 10, 120_000, 85_000, 30_000, None),
    "hvpl_r50_ovis_15-10": (25, 1, 10, 120_000, 85_000, 30_000, None),
    "crisp_r50_ytvis2019_20-4": (40, 5, 10, 1500, 1000, 600, 400),
    "crisp_r50_ytvis2019_20-2": (40, 10, 10, 1500, 1000, 300, 200),
    "crisp_r50_ytvis2021_20-5": (40, 4, 10, 1500, 1000, 1500, 1000),
    "crisp_r50_ytvis2021_10-10": (40, 3, 10, 750, 500, 3000, 2000),
}


VITA_AUGMENTATION = ClipAugmentation(
    short_sides=(288, 320, 352, 384, 416, 448, 480, 512),
    max_size=768,
    flip_probability=0.5,
    crop=RandomCropPath(probability=0.5, short_sides=(400, 500, 600), max_size=1333, window=(384, 600)),
)
MASK2FORMER_VIS_AUGMENTATION = ClipAugmentation(short_sides=(360, 480), max_size=1333, flip_probability=0.5, crop=None)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_hyper_parameters(name):
    num_classes, num_tasks, num_prompts, base_steps, milestone, steps, later_milestone = PUBLISHED[name]
    schedule = Schedule.load(name)
    tasks = schedule.classes.assign([f"class {index}" for index in range(num_classes)], schedule.seed)
    assert len(tasks) == num_tasks + 1
    assert schedule.num_prompts == num_prompts
    base, later = (schedule.task_recipe(number, tasks, schedule.train[:1]) for number in (0, num_tasks))
    assert (base.max_steps, base.learning_rate_schedule.milestones) == (base_steps, [milestone])
    assert later.max_steps == steps
    assert later.learning_rate_schedule.milestones == ([later_milestone] if later_milestone else [])
    hvpl = schedule.method == "hvpl"
    assert base.optimizer.learning_rate == later.optimizer.learning_rate == (5e-5 if hvpl else 1e-4)
    assert (base.optimizer.weight_decay, base.optimizer.max_gradient_norm) == (0.05, 0.01)
    frames = (5, 20) if "2019" in name else (6, 8)
    assert (base.data.num_frames, base.data.frame_range) == (frames if hvpl else (2, 20))
    assert (base.evaluation.short_side, base.evaluation.top_k) == (360, 20 if "ovis" in name else 10)
    assert (schedule.gradient_projection.threshold if hvpl else schedule.gradient_projection) == (0.7 if hvpl else None)
    deltas = schedule.calibration_deltas
    assert deltas == ([0.5, 0.6] if not hvpl else [0.5, -0.4] if "2021" in name else [0.4, 0.5])
    assert base.model.config.get("text_encoder") == (None if hvpl else "openai/clip-vit-base-patch32")
    assert base.batch_size == later.batch_size == (2 if hvpl else 16)
    assert schedule.seed == base.seed == later.seed == 42
    assert base.mixed_precision == later.mixed_precision == "fp16"
    for recipe in (base, later):
        assert recipe.data.augmentation == (VITA_AUGMENTATION if hvpl else MASK2FORMER_VIS_AUGMENTATION)
        assert (
            recipe.optimizer.backbone_factor,
            recipe.learning_rate_schedule.warmup_steps,
            recipe.learning_rate_schedule.factor,
        ) == (0.1, 0, 0.1)
    if not hvpl:
        assert len(schedule.train) == 1  # no images take part
        return
    videos, images = schedule.train
    ratio, mapping = {"19": (0.75, "ytvis2019"), "21": (0.8, "ytvis2021"), "is": (0.25, "ovis")}[
        name.split("_")[2][-2:]
    ]
    assert (images.ratio, videos.ratio, images.kind, images.class_mapping) == (1.0, ratio, "images", mapping)
    rotation = RandomRotation(max_angle=15.0, centre=(0.4, 0.6))
    assert base.data.image_rotation == later.data.image_rotation == rotation


def test_every_shipped_schedule_loads():
    assert set(PUBLISHED) | {"hvpl_moving_shapes", "crisp_moving_shapes"} == set(shipped_schedules())
    for name in shipped_schedules():
        schedule = Schedule.load(name)
        assert Schedule.from_dict(schedule.to_dict()) == schedule
        assert schedule.output_dir == name
        assert isinstance(schedule.train[0], SourceSettings)


def test_a_schedule_that_does_not_exist():
    with pytest.raises(FileNotFoundError, match="No schedule 'hvlp': give a YAML file or one of crisp_moving_shapes, "):
        Schedule.load("hvlp")


def test_crisp_schedule_runs_other_methods_without_text_encoder():
    tasks = [["dog"], ["cat"]]
    overrides = [f"classes={{tasks: {tasks}}}", "test={json: valid.json, images: frames}", "test_share=null"]
    configs = {}
    for method in ("crisp", "finetune"):
        schedule = Schedule.load("crisp_moving_shapes", [*overrides, f"method={method}"])
        recipe = schedule.task_recipe(1, tasks, schedule.train)
        configs[method] = recipe.model.config
        assert recipe.system == ("crisp" if method == "crisp" else "task_clip_detector")
    dropped = set(configs["crisp"]) - set(configs["finetune"])
    assert {"text_encoder", "text_hidden_size"} <= dropped
    assert configs["finetune"]["feature_size"] == 64
