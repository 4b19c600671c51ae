# SPDX-License-Identifier: Apache-2.0
"""Memory growth while a model segments an endless video online: 360 x 640 frames, GenVIS with 32 clips of memory.

Rows: `rss_growth_mb` (GenVIS), `rss_growth_mb_spvis` (SPVIS online) and `rss_growth_mb_minvis`, each in a process of
its own. The results of each clip are dropped, as in a live application. Compares the peak memory of the first 200
frames (`--quick`: 40), after which memory must not grow, with that of all frames.
"""

import multiprocessing
import resource
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from _harness import main, row
from transformers import PreTrainedConfig

from transformers_cvis import (
    AutoModelForVideoInstanceSegmentation,
    CvisVideoProcessor,
    GenVisConfig,
    MinVisConfig,
    SpvisConfig,
    segment_stream,
)

HEIGHT, WIDTH = 360, 640
LIMIT = 50  # megabytes
LABELS = {index: f"class {index}" for index in range(8)}
DETECTOR = {
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 16,
        "hidden_sizes": [16, 32, 64, 128],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 64,
    "encoder_layers": 1,
    "decoder_layers": 4,
    "dim_feedforward": 64,
    "num_attention_heads": 2,
    "num_queries": 20,
}


def configurations() -> dict[str, PreTrainedConfig]:
    """Return the configuration of a small model for each row."""
    genvis = {"num_queries": 10, "encoder_layers": 1, "decoder_layers": 2, "dim_feedforward": 64}
    tracked = {**DETECTOR, "num_queries": 10}  # as many masks as GenVIS has
    spvis = {"tracker_layers": 2, "tracker_dim_feedforward": 64, "filter_dim_feedforward": 64}
    return {
        "rss_growth_mb": GenVisConfig(
            detector_config=DETECTOR, num_attention_heads=2, memory_size=32, id2label=LABELS, **genvis
        ),
        "rss_growth_mb_spvis": SpvisConfig(**tracked, **spvis, id2label=LABELS),
        "rss_growth_mb_minvis": MinVisConfig(**tracked, id2label=LABELS),
    }


def moving_square(num_frames: int) -> Iterator[np.ndarray]:
    """Generate uint8 RGB frames `(height, width, 3)`, one by one."""
    rng = np.random.default_rng(0)
    background = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for index in range(num_frames):
        frame = background.copy()
        left = 4 * index % (WIDTH - 120)
        frame[120:240, left : left + 120] = (250, 40, index % 255)
        yield frame


def resident_megabytes() -> float:
    """Return the memory of this process now, or its peak so far on systems without `/proc`."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    return peak_megabytes()


def peak_megabytes() -> float:
    """Return the peak memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def measure(name: str, num_frames: int, settled: int) -> dict:
    """Measure a row. The weights are random: memory depends on sizes only."""
    torch.manual_seed(0)
    model = AutoModelForVideoInstanceSegmentation.from_config(configurations()[name]).eval()
    processor = CvisVideoProcessor(size={"shortest_edge": HEIGHT, "longest_edge": WIDTH})
    settled_peak = settled_resident = resident = num_masks = 0
    clips = segment_stream(model, processor, moving_square(num_frames), clip_length=1, threshold=None, top_k=10)
    for index, clip in enumerate(clips, start=1):
        num_masks += sum(segmentation is not None for track in clip.tracks for segmentation in track.segmentations)
        resident = max(resident, resident_megabytes())
        if index == settled:
            settled_peak, settled_resident = peak_megabytes(), resident
    # The peak of loading can hide a growth below it, and samples between clips miss a peak within one: take the larger.
    growth = max(peak_megabytes() - settled_peak, resident - settled_resident)
    note = f"{num_frames} frames, {num_masks} masks, peak {peak_megabytes():.0f} MB; limit {LIMIT} MB"
    return row(name, growth, unit="MB", note=note)


def rows(quick: bool) -> Iterator[dict]:
    for name in configurations():
        # A new process for each row: memory that another model has freed would hide a growth.
        with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as process:
            yield process.submit(measure, name, *((60, 40) if quick else (2000, 200))).result()


if __name__ == "__main__":
    main(__doc__.splitlines()[0], rows)
