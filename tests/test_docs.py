# SPDX-License-Identifier: Apache-2.0
"""The guide to your own data runs unchanged, in order, on small data sets; only the training is shortened."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

import transformers_cvis_cli as cli
from transformers_cvis.data import find_image_root, make_moving_shapes
from transformers_cvis.processing import VideoWriter

GUIDE = (Path(__file__).parent.parent / "docs" / "your_own_data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(bash|yaml|python)\n(.*?)```", GUIDE, flags=re.DOTALL)
PHOTO_NAMES = {"car": "automobile", "person": "human"}
SMALL_TRAINING = [
    *("max_steps=2", "batch_size=2", "checkpoint_every=0", "evaluate_every=0", "device=cpu", "num_threads=1"),
    *("data.num_workers=0", "data.augmentation={short_sides: [48], max_size: 96, crop: null}"),
    *("evaluation.short_side=48", "evaluation.max_size=96", "trackers=[jsonl]", "model.config.num_queries=5"),
    *(f"model.config.{name}=1" for name in ("encoder_layers", "decoder_layers", "num_frame_query_layers")),
    *(f"model.config.{name}=32" for name in ("dim_feedforward", "train_num_points")),
    "model.config.num_attention_heads=2",
]


def write_data(folder: Path, source: Path, frames: Path, num_frames: int, names: dict[str, str]) -> None:
    """Make the input of the guide from a YouTube-VIS json: frames, masks, classes, photographs and a video."""
    content = json.loads(source.read_text())
    category = {entry["id"]: names.get(entry["name"], entry["name"]) for entry in content["categories"]}
    classes, images, annotations, photo_annotations = {}, [], content["annotations"], []
    categories = [{"id": number, "name": PHOTO_NAMES.get(name, name)} for number, name in category.items()]
    for video in content["videos"]:
        name = Path(video["file_names"][0]).parent.name
        tracks = [annotation for annotation in annotations if annotation["video_id"] == video["id"]]
        classes[name] = {number: category[track["category_id"]] for number, track in enumerate(tracks, start=1)}
        for frame, file_name in enumerate(video["file_names"][:num_frames]):
            ids = np.zeros((video["height"], video["width"]), dtype=np.uint8)
            for number, track in enumerate(tracks, start=1):
                if track["segmentations"][frame]:
                    ids[mask_utils.decode(track["segmentations"][frame]) > 0] = number
            for kind, image in (("frames", Image.open(frames / file_name)), ("masks", Image.fromarray(ids))):
                path = folder / kind / name / f"{frame:05d}.{'jpg' if kind == 'frames' else 'png'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
        images.append(
            {
                "id": video["id"],
                "width": video["width"],
                "height": video["height"],
                "file_name": f"{name}.jpg",
            }
        )
        (folder / "photos").mkdir(exist_ok=True)
        Image.open(frames / video["file_names"][0]).save(folder / "photos" / f"{name}.jpg")
        for track in tracks:
            if box := track["bboxes"][0]:
                x, y, width, height = box
                octagon = [(1, 0), (2, 0), (3, 1), (3, 2), (2, 3), (1, 3), (0, 2), (0, 1)]
                polygon = [value for right, down in octagon for value in (x + right * width / 3, y + down * height / 3)]
                photo_annotations.append(
                    {
                        "id": track["id"],
                        "image_id": video["id"],
                        "category_id": track["category_id"],
                        "segmentation": [polygon],
                        "bbox": box,
                        "iscrowd": 0,
                    }
                )
    (folder / "classes.json").write_text(json.dumps(classes))
    photos = json.dumps({"images": images, "categories": categories, "annotations": photo_annotations})
    for name in ("photos.json", "photos_valid.json"):
        (folder / name).write_text(photos)
    with VideoWriter(folder / "my_video.mp4", fps=6) as writer:
        for path in sorted((folder / "frames" / next(iter(classes))).iterdir()):
            writer.write(np.asarray(Image.open(path)))


def run_guide(folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    for language, block in BLOCKS:
        block = block.replace("you/my-model", "tester/my-model")
        if language == "yaml":
            name = re.match(r"# (\w+\.yaml)\n", block)[1]
            Path(name).write_text(block)
        elif language == "python":
            exec(compile(block, f"docs/your_own_data.md:\n{block}", "exec"), {"__name__": "guide"})
        else:
            for line in block.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "transformers-cvis", line
                if arguments[0] == "train":
                    arguments += [word for change in SMALL_TRAINING for word in ("--set", change)]
                assert cli.main([*arguments, "--debug"]) == 0, line


def check_outcome(folder: Path, hub, class_names: set[str], capsys) -> None:
    for name in ("vita", "photos", "genvis"):
        summary = json.loads((folder / "runs" / name / "training_summary.json").read_text())
        assert "AP" in summary["metrics"]
        # Other values of the guide must remain under the changes of this test.
        assert summary["recipe"]["optimizer"]["learning_rate"] == 5e-5
    assert set(hub.repos["model", "tester/my-model"].branches) == {"main", "genvis"}
    config = json.loads((folder / "runs" / "genvis" / "config.json").read_text())
    assert config["model_type"] == "genvis"
    assert set(config["id2label"].values()) == class_names
    assert (folder / "segmented" / "my_video.mp4").exists()
    assert Image.open(folder / "clips.png").width > 500
    assert "AP" in capsys.readouterr().out


def test_the_guide_runs_on_generated_data(mask2former_on_the_hub, loopback_hub, tmp_path, monkeypatch, capsys):
    categories = ("circle", "square", "triangle")
    shapes = make_moving_shapes(tmp_path / "shapes", 6, 1, 6, size=(48, 64), categories=categories, seed=2)
    folder = tmp_path / "mine"
    names = {"circle": "car", "square": "person", "triangle": "dog"}
    write_data(folder, shapes / "train.json", shapes / "JPEGImages", 6, names)
    run_guide(folder, monkeypatch)
    check_outcome(folder, loopback_hub, {"car", "dog", "person"}, capsys)


def test_the_guide_runs_on_real_footage(
    clips_folder, mask2former_on_the_hub, loopback_hub, tmp_path, monkeypatch, capsys
):
    source = clips_folder / "mini_vis" / "train.json"
    content = json.loads(source.read_text())
    write_data(tmp_path / "mine", source, find_image_root(source), 5, {})
    run_guide(tmp_path / "mine", monkeypatch)
    check_outcome(tmp_path / "mine", loopback_hub, {entry["name"] for entry in content["categories"]}, capsys)


def test_links_of_the_guide_exist():
    assert {language for language, _ in BLOCKS} == {"bash", "yaml", "python"}
    docs = Path(__file__).parent.parent / "docs"
    targets = re.findall(r"\]\(([^)#]+)\)", GUIDE)
    assert not [target for target in targets if "://" not in target and not (docs / target).exists()]


def test_commands_in_the_text_are_understood():
    commands = re.findall(r"`(transformers-cvis [^`]+)`", GUIDE.replace("\n", " "))
    assert commands
    for command in commands:
        cli.build_parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("command", ["import-data", "validate", "train", "evaluate", "segment", "push"])
def test_the_guide_shows_every_step(command):
    assert any(f"transformers-cvis {command} " in block for language, block in BLOCKS if language == "bash")
