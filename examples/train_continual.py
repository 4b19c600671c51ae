# SPDX-License-Identifier: Apache-2.0
"""Run a class-incremental schedule: train and evaluate each task, save or push its adapter, write a report.

Without arguments, generates a few videos and runs a shipped schedule for a few steps, in about two minutes on a CPU:
enough to see every part, not to learn much.

    python examples/train_continual.py                                                 the small run
    python examples/train_continual.py --schedule my.yaml --out runs/mine              a schedule of your own
    accelerate launch examples/train_continual.py --schedule crisp_r50_ytvis2021_20-5  on all GPUs of this machine
    torchrun --nproc_per_node 2 examples/train_continual.py --schedule my.yaml         two processes, on CPU too

Started again, an interrupted run resumes at its task and step. `--push you/repo` pushes the base to `main` of that
repository and every task to a revision of its own, `task-1`, `task-2`, ... If it is added to a run that has begun,
tasks that are already learnt are pushed as well.
"""

import argparse
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import AutoVideoProcessor

from transformers_cvis import (
    AutoModelForVideoInstanceSegmentation,
    Schedule,
    make_moving_shapes,
    segment_video,
    train_continual,
)

FOLDER = Path("build/train_continual")
SMALL_RUN = ["base.max_steps=30", "increment.max_steps=10", "recipe.log_every=10", "gradient_projection.num_clips=8"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedule", help="YAML file, or a name that `transformers-cvis train-continual --list` shows")
    parser.add_argument("--out", type=Path, help="output folder (default: from the schedule)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a value of the schedule; may be repeated",
    )
    parser.add_argument("--push", metavar="REPOSITORY", help="push every task to this repository")
    return parser.parse_args()


def small_run() -> Schedule:
    """Return a shipped schedule with few steps, on a few generated videos."""
    data = FOLDER / "data"
    state = PartialState(cpu=not torch.accelerator.is_available())
    if state.is_main_process and not data.exists():
        categories = ["circle", "square", "star", "ring", "heart", "cross", "arrow", "triangle"]
        make_moving_shapes(data, 40, 4, num_frames=6, size=(64, 96), categories=categories, progress=True)
    state.wait_for_everyone()
    places = [f"{part}.images={data / 'JPEGImages'}" for part in ("train", "test")]
    places += [f"train.json={data / 'train.json'}", f"test.json={data / 'valid.json'}"]
    return Schedule.load("hvpl_moving_shapes", [*SMALL_RUN, *places, f"output_dir={FOLDER / 'hvpl'}"])


def main() -> None:
    arguments = parse_arguments()
    schedule = Schedule.load(arguments.schedule or small_run(), arguments.set)
    if arguments.push:
        schedule = Schedule.load(schedule, [f"push.repo={arguments.push}"])
    report = train_continual(schedule, arguments.out)
    if not PartialState().is_main_process:
        return
    print(report.to_markdown())

    # Each task has a folder to load. A model in memory returns to an earlier task without loading anything.
    out = Path(arguments.out or schedule.output_dir)
    last = out / f"task-{len(report.tasks) - 1}"
    model = AutoModelForVideoInstanceSegmentation.from_pretrained(last).eval()
    processor = AutoVideoProcessor.from_pretrained(last)
    if schedule.test is None or not schedule.rules.has_prompts:
        return
    video = sorted(Path(schedule.test.images).iterdir())[-1]
    for number in range(len(report.tasks)):
        model.set_task_adapters(number)
        tracks = segment_video(model, processor, video, threshold=None, top_k=3).tracks
        print(f"after task {number}:", ", ".join(f"{track.label} {track.score:.2f}" for track in tracks))


if __name__ == "__main__":
    main()
