# SPDX-License-Identifier: Apache-2.0
"""Shared harness: time ours and a peer in turn in one process; print the medians as a table, write them as JSON.

A benchmark passes `main` a description and a function that yields rows:

    from _harness import compare, main

    def rows(quick: bool) -> Iterator[dict]:
        yield compare("forward", ours=lambda: layer(x), peer=lambda: reference(x), repeats=5 if quick else 20)

    if __name__ == "__main__":
        main("Layer against reference", rows)

Run as `python benchmarks/NAME.py [--quick] [--json FILE]`. A row is
`{"name", "ours", "peer", "ratio", "unit", "note"}` with `ratio = ours / peer` (below 1: ours is smaller); `peer` and
`ratio` are None for a row without a peer. In the file every row also has `machine` and `versions`.
"""

import argparse
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from transformers_cvis.files import write_json

VERSIONED = ("torch", "torchvision", "transformers", "huggingface_hub", "kernels", "pycocotools", "numpy", "numba")


def compare(
    name: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    unit: str = "ms",
    note: str = "",
    repeats: int = 10,
    warmup: int = 1,
    scale: float = 1.0,
) -> dict:
    """Time two callables in turn (ours, peer, ours, peer, ...) and make a row of the medians.

    Args:
        name: name of the row.
        ours: callable of this package.
        peer: callable to compare with.
        unit: "ms" or "s", per call.
        note: last column of the row.
        repeats: timed calls of each.
        warmup: calls of each that are not counted.
        scale: factor of the medians, e.g. `1 / num_frames` for a time per frame.

    Returns:
        The row.
    """
    times: dict[Callable[[], object], list[float]] = {ours: [], peer: []}
    for turn in range(warmup + repeats):
        for function, samples in times.items():
            seconds = _seconds(function)
            if turn >= warmup:
                samples.append(seconds)
    factor = {"s": 1.0, "ms": 1e3}[unit] * scale
    return row(name, statistics.median(times[ours]) * factor, statistics.median(times[peer]) * factor, unit, note)


def row(name: str, ours: float, peer: float | None = None, unit: str = "", note: str = "") -> dict:
    """Make a row from numbers that were measured elsewhere."""
    ratio = None if peer is None else ours / peer
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "unit": unit, "note": note}


def main(description: str, rows: Callable[[bool], Iterable[dict]]) -> None:
    """Parse the command line, run `rows(quick)`, print the table row by row, and write `--json`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="smaller and fewer measurements; ends within 50 s")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the rows to FILE")
    arguments = parser.parse_args()

    machine, versions = this_machine(), versions_here()
    print(description)
    print(f"{machine['processor']}, {machine['threads']} threads, {machine['accelerator'] or 'no accelerator'}")
    print(", ".join(f"{package} {version}" for package, version in versions.items()))
    print(f"{'name':<24}{'ours':>12}{'peer':>12}{'ratio':>9}{'speed-up':>10}  unit  note")
    results = []
    for result in rows(arguments.quick):
        print(_line(result), flush=True)
        results.append({**result, "machine": machine, "versions": versions})
    if arguments.json is not None:
        write_json(arguments.json, results, indent=1)


def _seconds(function: Callable[[], object]) -> float:
    _synchronize()
    start = time.perf_counter()
    function()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _line(result: dict) -> str:
    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    speed_up = "-" if not result["ratio"] else f"{1 / result['ratio']:.1f}x"
    return (
        f"{result['name']:<24}{number(result['ours'], 3):>12}{number(result['peer'], 3):>12}"
        f"{number(result['ratio'], 3):>9}{speed_up:>10}  {result['unit']:<5} {result['note']}"
    )


def this_machine() -> dict:
    """Describe the processor, threads, accelerator and operating system."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
    }


def versions_here() -> dict:
    """Return the versions of Python and of the installed packages that matter for the figures."""
    versions = {"python": platform.python_version()}
    for package in VERSIONED:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
