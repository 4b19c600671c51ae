# SPDX-License-Identifier: Apache-2.0
"""Training on real footage: the recipes of the demo model on the clips in `CVIS_CLIPS`.

    CVIS_CLIPS=FOLDER python benchmarks/real_clips.py [--quick] [--json FILE]

For each data set of the folder (`NAME/train.json`, `NAME/valid.json`, `NAME/JPEGImages/`), trains VITA and from it
GenVIS, and prints the AP (in points, 0 to 100) on the training part and on the held-out part. No peer. The clips are
few, and both parts have clips of the same recordings: the figures show that masks, classes and tracks of real footage
are learnt, not how well the result generalises. `--quick` takes a few steps, to check that everything runs.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from _harness import main, row
from transformers import AutoVideoProcessor

from transformers_cvis import AutoModelForVideoInstanceSegmentation, Recipe, evaluate_ytvis, predict_dataset, train
from transformers_cvis.data import find_image_root

# Real objects need more pixels than generated ones; 92 to 238 frames need fewer steps than 24,000.
SIZE = [
    "data.augmentation.short_sides=[128, 144, 160]",
    "data.augmentation.max_size=288",
    "evaluation.short_side=144",
    "evaluation.max_size=256",
]
STEPS_PER_CLIP = {"vita_moving_shapes": 100, "genvis_moving_shapes": 100 / 3}


def train_on(folder: Path, work_dir: Path, quick: bool) -> Path:
    """Train VITA and from it GenVIS; return the folder of the GenVIS."""
    output_dir = None
    num_clips = len(json.loads((folder / "train.json").read_text())["videos"])
    for name, steps_per_clip in STEPS_PER_CLIP.items():
        steps = 2 if quick else round(steps_per_clip * num_clips)
        overrides = [*SIZE, f"max_steps={steps}", "evaluate_every=0", "learning_rate_schedule.warmup_steps=100"]
        for split in ("train", "valid"):
            json_path = folder / f"{split}.json"
            overrides += [f"data.{split}.json={json_path}", f"data.{split}.images={find_image_root(json_path)}"]
        if output_dir is not None:
            overrides.append(f"model.init_from={output_dir}")
        output_dir = work_dir / f"{folder.name}_{name}"
        train(Recipe.load(name, overrides), output_dir)
    return output_dir


def rows(quick: bool) -> Iterator[dict]:
    clips = os.environ.get("CVIS_CLIPS")
    if not clips:
        sys.exit("CVIS_CLIPS is not set: give a folder of NAME/train.json, NAME/valid.json and NAME/JPEGImages/.")
    folders = sorted(path.parent for path in Path(clips).glob("*/train.json"))
    with tempfile.TemporaryDirectory() as work_dir:
        for folder in folders[:1] if quick else folders:
            output_dir = train_on(folder, Path(work_dir), quick)
            model = AutoModelForVideoInstanceSegmentation.from_pretrained(output_dir).eval()
            processor = AutoVideoProcessor.from_pretrained(output_dir)
            for split in ("train", "valid"):
                json_path = folder / f"{split}.json"
                tracks = predict_dataset(model, processor, json_path, find_image_root(json_path))
                result = evaluate_ytvis(json_path, tracks)
                num_videos = len(json.loads(json_path.read_text())["videos"])
                note = f"AP50 {100 * result.summary['AP50']:.1f}, {num_videos} clips"
                yield row(f"{folder.name}_{split}_ap", 100 * result.summary["AP"], None, "points", note)


if __name__ == "__main__":
    main(__doc__.splitlines()[0], rows)
