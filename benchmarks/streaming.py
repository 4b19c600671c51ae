"""Growth of memory while GenVIS segments an endless video online: 360 x 640 frames, a memory of 32 clips.

The results of each clip are handed out and dropped, as a live application does. Peak memory is compared between the
first 200 frames, after which nothing may grow any more, and all frames.
"""

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from _harness import main, row

from transformers_cvis import CvisVideoProcessor, GenVisConfig, GenVisForVideoInstanceSegmentation, segment_stream

HEIGHT, WIDTH = 360, 640
SETTLED = 200  # frames
LIMIT = 50  # megabytes


def small_genvis() -> GenVisForVideoInstanceSegmentation:
    """Random weights: sizes of tensors, and so memory, do not depend on what was learnt."""
    torch.manual_seed(0)
    detector_config = {
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
    config = GenVisConfig(
        detector_config=detector_config,
        num_queries=10,
        encoder_layers=1,
        decoder_layers=2,
        dim_feedforward=64,
        num_attention_heads=2,
        id2label={index: f"class {index}" for index in range(8)},
        memory_size=32,
    )
    return GenVisForVideoInstanceSegmentation(config).eval()


def moving_square(num_frames: int) -> Iterator[np.ndarray]:
    """uint8 RGB frames, made one by one."""
    rng = np.random.default_rng(0)
    background = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for index in range(num_frames):
        frame = background.copy()
        left = 4 * index % (WIDTH - 120)
        frame[120:240, left : left + 120] = (250, 40, index % 255)
        yield frame


def resident_megabytes() -> float:
    """Memory of this process now, or where the system does not tell, its peak so far."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    return peak_megabytes()


def peak_megabytes() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def rows(quick: bool):
    num_frames = 300 if quick else 2000
    processor = CvisVideoProcessor(size={"shortest_edge": HEIGHT, "longest_edge": WIDTH})
    settled_peak = settled_resident = resident = num_masks = 0
    clips = segment_stream(small_genvis(), processor, moving_square(num_frames), threshold=None, top_k=10)
    for index, clip in enumerate(clips, start=1):
        num_masks += sum(segmentation is not None for track in clip.tracks for segmentation in track.segmentations)
        resident = max(resident, resident_megabytes())
        if index == SETTLED:
            settled_peak, settled_resident = peak_megabytes(), resident
    # The peak of loading may hide a growth below it, the samples between clips a peak within one: the larger counts.
    growth = max(peak_megabytes() - settled_peak, resident - settled_resident)
    note = f"{num_frames} frames, {num_masks} masks, peak {peak_megabytes():.0f} MB; limit {LIMIT} MB"
    yield row("rss_growth_mb", growth, unit="MB", note=note)


if __name__ == "__main__":
    main(__doc__.splitlines()[0], rows)
