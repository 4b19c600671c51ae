# SPDX-License-Identifier: Apache-2.0
"""AP and forgetting of class-incremental methods: 8 classes, learnt as 4 + 2 + 2.

    python benchmarks/continual_moving_shapes.py [--quick] [--json FILE] [--work-dir FOLDER] [--only NAME ...]
    CVIS_CLIPS=FOLDER python benchmarks/continual_moving_shapes.py --clips

Runs the shipped schedules `hvpl_moving_shapes` and `crisp_moving_shapes` and their baselines, each for several seeds,
with one process of one thread per core, and prints a row per method, with means and standard deviations over the seeds:

- `map`: AP over all 8 classes after the last task. All AP is of test videos with all classes, in 0..1.
- `base_ap`: AP over the 4 classes of the base.
- `last_task_ap`: AP over the 2 classes of the last task.
- `fr`: forgetting rate of CRISP, from 0 (nothing lost) to 1; null for a method without later tasks.
- `trainable_parameters`: parameters that a later task trains.
- `seconds`: duration of all trainings.

ECLIPSE, CRISP and the methods that train the whole model start from one base per seed, that of ECLIPSE, like the
released scripts of CRISP; HVPL without OGC starts from the base of HVPL. Runs that are complete in the work folder are
not repeated. `--quick` takes a few steps of ECLIPSE and HVPL, to check that everything runs. `--ship` copies the HVPL
of the first seed into the package, for `examples/switch_tasks.py`.

`--clips` uses the real footage of `mini_vis` in `CVIS_CLIPS` instead, with one seed: {dog, car, bird, cow}, {horse,
person}, {bicycle, camel}. Most classes have one recording, cut into a part for training and one for testing, so this
only shows that the schedule runs on real footage.
"""

import argparse
import json
import multiprocessing
import os
import re
import shutil
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from _harness import this_machine, versions_here

import transformers_cvis_cli as cli
from transformers_cvis import make_moving_shapes
from transformers_cvis.assets import ASSETS
from transformers_cvis.data import SHAPES
from transformers_cvis.evaluation import ContinualReport
from transformers_cvis.files import write_json
from transformers_cvis.hub.card import name_of_folder

CATEGORIES = list(SHAPES)[:8]
DATA = {"num_frames": 8, "size": (64, 96), "object_size": (0.5, 0.9), "num_objects": (1, 2), "typical_colours": 1.0}
NUM_VIDEOS, DATA_SEED = (1000, 60), 100
SEEDS = (0, 1, 2)
QUICK = ("base.max_steps=2", "increment.max_steps=1")


@dataclass(frozen=True)
class Setting:
    """Data, the classes of each task, and the changes that the data needs in the shipped schedules."""

    train: Path
    test: Path
    images: Path
    tasks: list[list[str]]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()

    def as_overrides(self) -> list[str]:
        """Return the changes of a schedule."""
        places = [f"train.json={self.train}", f"test.json={self.test}"]
        places += [f"{part}.images={self.images}" for part in ("train", "test")]
        return [*places, "classes.split=null", f"classes.tasks={json.dumps(self.tasks)}", *self.overrides]


def moving_shapes(work_dir: Path, quick: bool) -> Setting:
    """Return the setting of generated videos; generate them if they do not exist."""
    data = work_dir / "data"
    if not data.exists():
        make_moving_shapes(data, *((40, 3) if quick else NUM_VIDEOS), categories=CATEGORIES, seed=DATA_SEED, **DATA)
    tasks = [CATEGORIES[:4], CATEGORIES[4:6], CATEGORIES[6:]]
    json_paths = data / "train.json", data / "valid.json"
    return Setting(*json_paths, data / "JPEGImages", tasks, SEEDS[:1] if quick else SEEDS, QUICK if quick else ())


def real_clips(quick: bool) -> Setting:
    """Return the setting of `mini_vis`: frames a little larger than the generated ones, fewer steps for few clips."""
    clips = os.environ.get("CVIS_CLIPS")
    if not clips:
        sys.exit("CVIS_CLIPS is not set: give the folder of real footage with mini_vis/train.json.")
    folder = Path(clips) / "mini_vis"
    tasks = [["dog", "car", "bird", "cow"], ["horse", "person"], ["bicycle", "camel"]]
    size = ("recipe.data.augmentation.short_sides=[96]", "recipe.data.augmentation.max_size=176")
    size += ("recipe.evaluation.short_side=96", "recipe.evaluation.max_size=176", "recipe.batch_size=4")
    steps = QUICK if quick else ("base.max_steps=400", "increment.max_steps=200")
    json_paths = folder / "train.json", folder / "valid.json"
    return Setting(*json_paths, folder / "JPEGImages", tasks, SEEDS[:1], (*size, *steps))


@dataclass(frozen=True)
class Run:
    """A row: a schedule with some values changed.

    Attributes:
        schedule: name of a shipped schedule.
        overrides: changes of it.
        base_of: run whose base it starts from; None trains a base.
        seeds: largest number of seeds.
    """

    schedule: str
    overrides: tuple[str, ...] = ()
    base_of: str | None = None
    seeds: int = len(SEEDS)


# A whole model trains with the learning rate of its base; the tenfold rate of prompts would destroy it.
WHOLE = "increment.optimizer.learning_rate=1e-3"
RUNS = {
    "eclipse": Run("crisp_moving_shapes", ("method=eclipse",)),
    "crisp": Run("crisp_moving_shapes", base_of="eclipse"),
    "hvpl": Run("hvpl_moving_shapes"),
    "finetune": Run("crisp_moving_shapes", ("method=finetune", WHOLE), base_of="eclipse"),
    "mib": Run("crisp_moving_shapes", ("method=mib", WHOLE), base_of="eclipse", seeds=1),
    "comformer": Run("crisp_moving_shapes", ("method=comformer", WHOLE), base_of="eclipse", seeds=1),
    "pod": Run("crisp_moving_shapes", ("method=pod", WHOLE), base_of="eclipse", seeds=1),
    "joint": Run("crisp_moving_shapes", ("method=joint",), seeds=1),
    "crisp without ARSP and ISC": Run(
        "crisp_moving_shapes",
        ("recipe.model.config.residual_prompts=false", "recipe.model.config.lambda_isc=0.0"),
        base_of="eclipse",
    ),
    "crisp without IC": Run("crisp_moving_shapes", ("recipe.model.config.lambda_ic=0.0",), base_of="eclipse"),
    "crisp without PCA": Run("crisp_moving_shapes", ("recipe.model.config.prompt_init=mean",), base_of="eclipse"),
    "hvpl without OGC": Run("hvpl_moving_shapes", ("gradient_projection=null",), base_of="hvpl"),
    "hvpl without context encoder": Run("hvpl_moving_shapes", ("recipe.model.config.encoder=attention",), seeds=1),
}


QUICK_RUNS = ("eclipse", "hvpl")  # one for each base model, at the same time


def folder_of(work_dir: Path, name: str, seed: int) -> Path:
    return work_dir / name.replace(" ", "_") / f"seed-{seed}"


def execute(work_dir: Path, setting: Setting, name: str, seed: int) -> None:
    """Run or resume a schedule, with its output in a log file.

    Raises:
        RuntimeError: The schedule failed.
    """
    run = RUNS[name]
    overrides = [f"seed={seed}", *setting.as_overrides(), *run.overrides]
    if run.base_of is not None:
        overrides.append(f"base_model={folder_of(work_dir, run.base_of, seed) / 'task-0'}")
    out = folder_of(work_dir, name, seed)
    command = ["train-continual", run.schedule, "--out", str(out)]
    for override in overrides:
        command += ["--set", override]
    out.parent.mkdir(parents=True, exist_ok=True)
    log = Path(f"{out}.log")
    with open(log, "a") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = ["transformers-cvis", *command]  # training summaries quote it; only this process changes
    if cli.main(command) != 0:
        raise RuntimeError(f"{name} with seed {seed} failed:\n{log.read_text()[-2000:]}")


def measure(work_dir: Path, setting: Setting, name: str, seed: int) -> dict[str, float | None]:
    """Read the figures of a complete run."""
    folder = folder_of(work_dir, name, seed)
    report = ContinualReport.read(folder / "report" / "report.json")
    last = report.evaluations[-1].classes_on_all_videos
    paths = [folder / f"task-{number}" / "training_summary.json" for number in range(len(report.tasks))]
    summaries = [json.loads(path.read_text()) for path in paths]
    return {
        "map": report.overall("AP")[-1],
        "base_ap": mean_ap(last, setting.tasks[0]),
        "last_task_ap": mean_ap(last, setting.tasks[-1]),
        "fr": report.crisp_forgetting().value if len(report.tasks) > 1 else None,
        "trainable_parameters": summaries[-1]["num_trained_parameters"],
        "seconds": sum(summary["seconds"] for summary in summaries),
    }


def mean_ap(classes: dict[str, dict[str, float]], names: list[str]) -> float:
    """Return the mean AP of the named classes that are in the test videos; others have AP -1."""
    return statistics.mean([classes[name]["AP"] for name in names if classes[name]["AP"] >= 0] or [0.0])


def summarise(work_dir: Path, setting: Setting, name: str, seeds: list[int]) -> dict:
    """Return means and standard deviations over the seeds."""
    by_seed = [measure(work_dir, setting, name, seed) for seed in seeds]
    row: dict = {"seeds": seeds, "by_seed": by_seed}
    for key in by_seed[0]:
        values = [measured[key] for measured in by_seed]
        row[key] = None if None in values else statistics.mean(values)
        row[f"{key}_spread"] = None if None in values else statistics.pstdev(values)
    return row


def training_minutes(work_dir: Path, seeds: dict[str, list[int]]) -> float:
    """Return the sum over all processes; each base counts once, for the run that trained it."""
    paths = [
        path
        for name in seeds
        for seed in seeds[name]
        for path in folder_of(work_dir, name, seed).glob("task-*/training_summary.json")
        if RUNS[name].base_of is None or path.parent.name != "task-0"
    ]
    return sum(json.loads(path.read_text())["seconds"] for path in paths) / 60


def ship(work_dir: Path, run: Path) -> None:
    """Copy the base and adapters of a run into the package, without files that only the training needs."""
    target = ASSETS / "hvpl-moving-shapes"
    shutil.rmtree(target, ignore_errors=True)
    left_out = shutil.ignore_patterns("checkpoints", "evaluation.json", "results.json", "training_log.jsonl")
    for number, source in enumerate(sorted(run.glob("task-*"))):
        folder = target / source.name
        shutil.copytree(source, folder, ignore=left_out, copy_function=shutil.copyfile)
        summary = folder / "training_summary.json"
        summary.write_text(summary.read_text().replace(f"{work_dir}/", ""))
        card = folder / "README.md"  # not on the Hub: loaded by its path, named after its folder
        text = card.read_text().replace(f"{work_dir}/", "").replace("license: unknown", "license: apache-2.0")
        text = text.replace("| Licence | unknown |", "| Licence | apache-2.0 |")
        text = text.replace(f'"{name_of_folder(source)}"', f"transformers_cvis.task_adapter_path({number})")
        card.write_text(re.sub(rf"^(# |- name: ){run.name}\b", rf"\g<1>{target.name}", text, flags=re.MULTILINE))


def line(name: str, row: dict) -> str:
    def percent(key: str) -> str:
        return f"{'-':>13}" if row[key] is None else f"{100 * row[key]:>7.1f} ±{100 * row[f'{key}_spread']:>4.1f}"

    measured = "".join(percent(key) for key in ("map", "base_ap", "last_task_ap", "fr"))
    return f"{name:<30}{measured}{row['trainable_parameters']:>12,.0f}{row['seconds']:>9.0f}{len(row['seeds']):>7}"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps of ECLIPSE and HVPL, one seed")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the rows to FILE")
    parser.add_argument("--work-dir", type=Path, help="data and runs (default: a temporary folder)")
    parser.add_argument("--clips", action="store_true", help="train on the real footage in CVIS_CLIPS")
    parser.add_argument(
        "--only", nargs="+", choices=list(RUNS), metavar="NAME", help="run these rows only (default: all)"
    )
    parser.add_argument("--ship", action="store_true", help="also copy the HVPL of the first seed into the package")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time (default: one per core)")
    arguments = parser.parse_args()
    arguments.only = arguments.only or ([*QUICK_RUNS] if arguments.quick else [*RUNS])
    return arguments


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as temporary:
        work_dir = arguments.work_dir or Path(temporary)
        setting = real_clips(arguments.quick) if arguments.clips else moving_shapes(work_dir, arguments.quick)
        seeds = {name: list(setting.seeds[: RUNS[name].seeds]) for name in arguments.only}
        # Bases run first, methods that start from them second. Forked processes need not import everything again.
        for stage in (False, True):
            jobs = [(n, seed) for n in arguments.only if (RUNS[n].base_of is not None) == stage for seed in seeds[n]]
            jobs.sort(key=lambda job: job[1])
            fork = multiprocessing.get_context("fork")
            with ProcessPoolExecutor(arguments.jobs, fork, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                for run in [pool.submit(execute, work_dir, setting, *job) for job in jobs]:
                    run.result()
        machine, versions = this_machine(), versions_here()
        print(f"{machine['processor']}, {arguments.jobs} processes of 1 thread; torch {versions['torch']}")
        heads = "".join(f"{head:>13}" for head in ("mAP", "base", "last task", "FR"))
        print(f"{'in percent':<30}{heads}{'trained':>12}{'seconds':>9}{'seeds':>7}")
        rows = {name: summarise(work_dir, setting, name, seeds[name]) for name in arguments.only}
        for name, row in rows.items():
            print(line(name, row))
        print(f"All trainings: {training_minutes(work_dir, seeds):.0f} minutes of one process")
        if arguments.json is not None:
            content = {name: {**row, "machine": machine, "versions": versions} for name, row in rows.items()}
            write_json(arguments.json, content, indent=1)
        if arguments.ship:
            ship(work_dir, folder_of(work_dir, "hvpl", SEEDS[0]))


if __name__ == "__main__":
    main()
