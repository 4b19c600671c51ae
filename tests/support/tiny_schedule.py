# SPDX-License-Identifier: Apache-2.0
"""A schedule that trains real models of a few thousand parameters task by task; run as a program, it trains them.

python tiny_schedule.py DATA_FOLDER METHOD OUTPUT_DIR [key=value ...]
"""

import json
import os
import sys
from pathlib import Path

from tests.support import tiny_run
from transformers_cvis.continual import Schedule, train_continual
from transformers_cvis.continual import run as continual
from transformers_cvis.continual.methods import METHODS

CATEGORIES = ["circle", "square", "star", "ring"]
TASKS = [["circle", "star"], ["ring"], ["square"]]  # not in the order of the categories


def tiny_schedule(data_folder, method: str = "hvpl", **changes) -> Schedule:
    system = METHODS[method].system if method in METHODS else "hvpl"
    recipe = tiny_run.tiny_recipe(data_folder, system).to_dict()
    for key in ("system", "seed", "output_dir"):
        del recipe[key]
    data = recipe["data"]
    for key in ("train", "valid", "class_names"):
        del data[key]
    source = {"images": f"{data_folder}/JPEGImages"}
    values = {
        "method": method,
        "train": {"json": f"{data_folder}/train.json", **source},
        "test": {"json": f"{data_folder}/valid.json", **source},
        "classes": {"tasks": TASKS},
        "recipe": {**recipe, "max_steps": 4},
        "increment": {"optimizer": {"learning_rate": 2e-3}},
        "num_prompts": 4,
        "calibration_deltas": [0.4, 0.5],
    }
    if method == "hvpl":
        values["gradient_projection"] = {"num_clips": 4, "threshold": 0.5}
    return Schedule.from_dict({**values, **changes})


def images_of(shapes: Path, path: Path, shown: dict[str, str]) -> dict:
    """Write the first frames of the videos as a COCO source; `shown` maps categories to the classes they become."""
    content = json.loads((shapes / "train.json").read_text())
    name_of = {category["id"]: category["name"] for category in content["categories"]}
    ids = {class_name: number for number, class_name in enumerate(shown.values(), start=1)}
    rows = [row for row in content["annotations"] if name_of[row["category_id"]] in ids and row["segmentations"][0]]
    coco = {
        "images": [
            {**{key: video[key] for key in ("id", "width", "height")}, "file_name": video["file_names"][0]}
            for video in content["videos"]
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(shown, start=1)],
        "annotations": [
            {
                **{"id": row["id"], "image_id": row["video_id"], "category_id": ids[name_of[row["category_id"]]]},
                **{"segmentation": row["segmentations"][0], "bbox": row["bboxes"][0], "area": row["areas"][0]},
                "iscrowd": 0,
            }
            for row in rows
        ],
    }
    path.write_text(json.dumps(coco))
    return {"json": str(path), "images": str(shapes / "JPEGImages"), "kind": "images", "class_mapping": shown}


if __name__ == "__main__":
    data_folder, method, output_dir, *overrides = sys.argv[1:]
    if "FIXED_POINTS" in os.environ:
        continual.build_model = tiny_run.with_fixed_points(continual.build_model)
    train_continual(tiny_schedule(data_folder, method), output_dir, overrides=overrides)
