# SPDX-License-Identifier: Apache-2.0
"""The directions that a tiny HVPL protects, as each process of a run gets them; run as a program, it saves them.

python tiny_directions.py DATA_FOLDER OUTPUT_DIR
"""

import sys
from pathlib import Path

from accelerate.state import PartialState
from accelerate.utils import set_seed
from safetensors.torch import save_file

from tests.support.tiny_run import tiny_recipe
from transformers_cvis.continual.gradient_projection import collect_directions
from transformers_cvis.processing import CvisVideoProcessor
from transformers_cvis.training.build import build_dataset, build_model
from transformers_cvis.training.train import join_processes


def tiny_directions(data_folder):
    recipe = tiny_recipe(data_folder, "hvpl")
    dataset, names = build_dataset(recipe)
    set_seed(recipe.seed)
    return collect_directions(build_model(recipe, names), dataset, CvisVideoProcessor(), threshold=0.95, num_clips=5)


if __name__ == "__main__":
    data_folder, output_dir = sys.argv[1:]
    join_processes(on_cpu=True)
    directions = tiny_directions(data_folder)
    save_file({"directions": directions}, Path(output_dir) / f"rank-{PartialState().process_index}.safetensors")
