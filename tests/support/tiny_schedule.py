"""A schedule that trains real models of a few thousand parameters task by task; also a program that runs it.

python tiny_schedule.py DATA_FOLDER METHOD OUTPUT_DIR [key=value ...]
"""

import os
import sys

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


if __name__ == "__main__":
    data_folder, method, output_dir, *overrides = sys.argv[1:]
    if "FIXED_POINTS" in os.environ:
        continual.build_model = tiny_run.with_fixed_points(continual.build_model)
    train_continual(tiny_schedule(data_folder, method), output_dir, overrides=overrides)
