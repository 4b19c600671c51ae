"""What methods of class-incremental learning know at the end, and what they forgot: 8 kinds of shapes, 4 + 2 + 2.

    python benchmarks/continual_moving_shapes.py [--quick] [--json FILE] [--work-dir FOLDER] [--only NAME ...]

Runs the shipped schedules `hvpl_moving_shapes` and `crisp_moving_shapes` and what they are compared with, each for
several seeds, two processes of one thread at a time, and prints a row per method: AP over all 8 classes after the last
task (`map`), over the 4 of the base (`base_ap`) and the 2 of the last task (`last_task_ap`), CRISP's forgetting rate
(`fr`, 0 is nothing lost, 1 all), the parameters that a later task trains, and the seconds of all trainings. AP is of
test videos with all classes, in 0..1. Means over the seeds, with the standard deviation behind them in the file.

ECLIPSE, fine-tuning and the methods with distillation start from one base, the ablations of CRISP and HVPL from the
base of the whole method, where what is left out does not belong to the base. Runs that are complete in the work folder
are not repeated. `--quick` takes a few steps of every method, to see that everything runs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from _harness import _machine, _versions

from transformers_cvis import make_moving_shapes
from transformers_cvis.data import SHAPES
from transformers_cvis.evaluation import ContinualReport

CATEGORIES = list(SHAPES)[:8]
DATA = {"num_frames": 8, "size": (64, 96), "object_size": (0.4, 0.8), "num_objects": (1, 3), "seed": 100}
NUM_VIDEOS = (600, 80)
SEEDS = (0, 1, 2)
QUICK = ["base.max_steps=2", "increment.max_steps=1", "classes.tasks=[[circle, square], [star]]"]


@dataclass(frozen=True)
class Run:
    """A row: a schedule with some values changed.

    base_of: the run whose base it starts from; None learns one. seeds: how many.
    """

    schedule: str
    overrides: tuple[str, ...] = ()
    base_of: str | None = None
    seeds: int = len(SEEDS)


RUNS = {
    "eclipse": Run("crisp_moving_shapes", ("method=eclipse",)),
    "crisp": Run("crisp_moving_shapes"),
    "hvpl": Run("hvpl_moving_shapes"),
    "finetune": Run("crisp_moving_shapes", ("method=finetune",), base_of="eclipse"),
    "mib": Run("crisp_moving_shapes", ("method=mib",), base_of="eclipse", seeds=1),
    "comformer": Run("crisp_moving_shapes", ("method=comformer",), base_of="eclipse", seeds=1),
    "pod": Run("crisp_moving_shapes", ("method=pod",), base_of="eclipse", seeds=1),
    "joint": Run("crisp_moving_shapes", ("method=joint",), seeds=1),
    "crisp without ARSP and ISC": Run(
        "crisp_moving_shapes",
        ("recipe.model.config.residual_prompts=false", "recipe.model.config.lambda_isc=0.0"),
        base_of="crisp",
    ),
    "crisp without IC": Run("crisp_moving_shapes", ("recipe.model.config.lambda_ic=0.0",), base_of="crisp"),
    "crisp without PCA": Run("crisp_moving_shapes", ("recipe.model.config.prompt_init=mean",), base_of="crisp"),
    "hvpl without OGC": Run("hvpl_moving_shapes", ("gradient_projection=null",), base_of="hvpl"),
    "hvpl without context encoder": Run("hvpl_moving_shapes", ("recipe.model.config.encoder=attention",), seeds=1),
}


def folder_of(work_dir: Path, name: str, seed: int) -> Path:
    return work_dir / name.replace(" ", "_") / f"seed-{seed}"


def execute(work_dir: Path, name: str, seed: int, quick: bool) -> None:
    """Run a schedule in a process of its own; it goes on where it was."""
    run, data = RUNS[name], work_dir / "data"
    overrides = [f"seed={seed}", *run.overrides]
    overrides += [f"train.json={data / 'train.json'}", f"test.json={data / 'valid.json'}"]
    overrides += [f"{part}.images={data / 'JPEGImages'}" for part in ("train", "test")]
    if run.base_of is not None:
        overrides.append(f"base_model={folder_of(work_dir, run.base_of, seed) / 'task-0'}")
    if quick:
        overrides += QUICK
    out = folder_of(work_dir, name, seed)
    command = [sys.executable, "-m", "transformers_cvis.cli", "train-continual", run.schedule, "--out", str(out)]
    for override in overrides:
        command += ["--set", override]
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{out}.log", "a") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    if result.returncode:
        raise RuntimeError(f"{name}, seed {seed}, failed:\n{Path(f'{out}.log').read_text()[-2000:]}")


def measure(work_dir: Path, name: str, seed: int) -> dict[str, float]:
    folder = folder_of(work_dir, name, seed)
    report = ContinualReport.read(folder / "report" / "report.json")
    last = report.evaluations[-1].classes_on_all_videos
    num_base, num_last = 4, 2
    base_names, last_names = CATEGORIES[:num_base], CATEGORIES[-num_last:]
    numbers = sorted(int(path.name.removeprefix("task-")) for path in folder.glob("task-*"))
    summaries = []
    for number in numbers:
        path = folder / f"task-{number}" / "training_summary.json"
        if not path.is_file():  # the base was learnt by another run
            path = folder_of(work_dir, RUNS[name].base_of, seed) / f"task-{number}" / "training_summary.json"
        summaries.append(json.loads(path.read_text()))
    known = set(report.class_names)
    return {
        "map": report.overall("AP")[-1],
        "base_ap": statistics.mean(last[name]["AP"] for name in base_names if name in known),
        "last_task_ap": statistics.mean([last[name]["AP"] for name in last_names if name in known] or [0.0]),
        "fr": report.crisp_forgetting().value if len(report.tasks) > 1 else 0.0,
        "trainable_parameters": summaries[-1]["num_trained_parameters"],
        "seconds": sum(summary["seconds"] for summary in summaries),
    }


def summarise(work_dir: Path, name: str, seeds: list[int]) -> dict:
    by_seed = [measure(work_dir, name, seed) for seed in seeds]
    row = {key: statistics.mean(values[key] for values in by_seed) for key in by_seed[0]}
    spread = {f"{key}_spread": statistics.pstdev(values[key] for values in by_seed) for key in ("map", "base_ap", "fr")}
    return {**row, **spread, "seeds": seeds, "by_seed": by_seed}


def line(name: str, row: dict) -> str:
    return (
        f"{name:<30}{row['map']:>7.3f} ±{row['map_spread']:.3f}{row['base_ap']:>9.3f}{row['last_task_ap']:>10.3f}"
        f"{row['fr']:>8.3f} ±{row['fr_spread']:.3f}{row['trainable_parameters']:>12,.0f}{row['seconds']:>9.0f}"
        f"{len(row['seeds']):>7}"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps of every method, one seed")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the rows to FILE")
    parser.add_argument("--work-dir", type=Path, help="data and runs (default: a temporary folder)")
    parser.add_argument("--only", nargs="+", default=list(RUNS), choices=list(RUNS), metavar="NAME", help="these rows")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time (default: one per core)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as temporary:
        work_dir = arguments.work_dir or Path(temporary)
        if not (work_dir / "data").exists():
            num_videos = (6, 2) if arguments.quick else NUM_VIDEOS
            make_moving_shapes(work_dir / "data", *num_videos, categories=CATEGORIES, progress=True, **DATA)
        seeds = {name: list(SEEDS[: 1 if arguments.quick else RUNS[name].seeds]) for name in arguments.only}
        # Bases first; a method waits for those that it starts from.
        for stage in (False, True):
            jobs = [(n, seed) for n in arguments.only if (RUNS[n].base_of is not None) == stage for seed in seeds[n]]
            jobs.sort(key=lambda job: job[1])
            with ThreadPoolExecutor(arguments.jobs) as pool:
                for _ in pool.map(lambda job: execute(work_dir, *job, arguments.quick), jobs):
                    pass
        machine, versions = _machine(), _versions()
        print(f"{machine['processor']}, {arguments.jobs} processes of 1 thread; torch {versions['torch']}")
        print(
            f"{'method':<30}{'mAP':>7}{'':7}{'base':>9}{'last task':>10}{'FR':>8}{'':7}{'trained':>12}{'seconds':>9}"
            f"{'seeds':>7}"
        )
        rows = {name: summarise(work_dir, name, seeds[name]) for name in arguments.only}
        for name, row in rows.items():
            print(line(name, row))
        if arguments.json is not None:
            content = {name: {**row, "machine": machine, "versions": versions} for name, row in rows.items()}
            temporary_file = arguments.json.with_name(arguments.json.name + ".tmp")
            temporary_file.write_text(json.dumps(content, indent=1))
            os.replace(temporary_file, arguments.json)


if __name__ == "__main__":
    main()
