# SPDX-License-Identifier: Apache-2.0
"""Switch the tasks of a continually trained model: each adapter adds categories.

    python examples/switch_tasks.py [--out demo_output] [--model FOLDER]

Loads the HVPL that ships with the package (a base with four kinds of shapes, and two task adapters with two more each),
generates a video with shapes of all three tasks, and segments it without adapters, with the first and with both. Prints
which track covers each object, and draws the same frames below each other. The base is loaded once.

`--model` takes the last `task-N` folder of a schedule that was trained on moving shapes.
"""

import argparse
from pathlib import Path

import numpy as np
from transformers import AutoVideoProcessor

from transformers_cvis import AutoModelForVideoInstanceSegmentation, Track, segment_video, task_adapter_path
from transformers_cvis.data import generate_video
from transformers_cvis.files import complete_file
from transformers_cvis.processing import contact_sheet, draw_tracks
from transformers_cvis.rle import decode

# Not a training video; chosen because the model finds an object of every task in it. The model misses more objects of
# later tasks, which learn on top of features trained on four kinds of shapes: see its card.
VIDEO = {"num_frames": 16, "size": (192, 288), "seed": 319, "num_objects": (3, 3), "object_size": (0.45, 0.7)}
NUM_COLUMNS = 4
FOUND_IOU = 0.5


def track_masks(track: Track, size: tuple[int, int]) -> np.ndarray:
    """Return the masks of a track, `(num_frames, height, width)` bool, False in frames without the object."""
    absent = np.zeros(size, dtype=bool)
    return np.stack([absent if mask is None else decode(mask) for mask in track.segmentations])


def iou(first: np.ndarray, second: np.ndarray) -> float:
    """Return the intersection over union of two masks of a whole video."""
    return np.count_nonzero(first & second) / np.count_nonzero(first | second)


def find_track(truth: np.ndarray, tracks: list[Track], masks: list[np.ndarray]) -> int | None:
    """Return the index of the best track that covers an object over the whole video, or None."""
    covering = [index for index, mask in enumerate(masks) if iou(truth, mask) >= FOUND_IOU]
    return max(covering, key=lambda index: tracks[index].score, default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder of the picture")
    parser.add_argument("--model", type=Path, help="folder of the last adapter (default: the bundled one)")
    arguments = parser.parse_args()
    folder = arguments.model or task_adapter_path()

    model = AutoModelForVideoInstanceSegmentation.from_pretrained(folder).eval()
    processor = AutoVideoProcessor.from_pretrained(folder)
    num_tasks = len(model.loaded_task_adapters) + 1
    categories = [model.config.id2label[index] for index in range(model.config.num_labels)]
    video = generate_video(categories=categories, **VIDEO)
    size = VIDEO["size"]
    shown = np.linspace(0, len(video.frames) - 1, NUM_COLUMNS).round().astype(int)

    header = ["object"]
    tiles: list[np.ndarray] = []
    captions: list[str] = []
    rows = [[name] for name in video.categories]
    others = ["other tracks"]
    known = 0
    for number in range(num_tasks):
        model.set_task_adapters(number)
        new = [model.config.id2label[index] for index in range(known, model.config.num_labels)]
        known = model.config.num_labels
        tracks = segment_video(model, processor, video.frames).tracks
        masks = [track_masks(track, size) for track in tracks]
        found = [find_track(truth, tracks, masks) for truth in video.masks]
        header.append(f"task {number} (+ {', '.join(new)})" if number else f"base ({', '.join(new)})")
        for row, index in zip(rows, found, strict=True):
            row.append("-" if index is None else f"{tracks[index].label} {tracks[index].score:.2f}")
        others.append(str(len(tracks) - len({index for index in found if index is not None})))
        tiles += [draw_tracks(video.frames[index], tracks, index) for index in shown]
        captions += [header[-1], *(f"frame {index}" for index in shown[1:])]

    table = [header, *rows, others]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    picture = arguments.out / "switch_tasks.png"
    arguments.out.mkdir(parents=True, exist_ok=True)
    with complete_file(picture) as file:
        contact_sheet(tiles, captions, columns=NUM_COLUMNS).save(file, format="PNG")
    print(f"Written: {picture}")


if __name__ == "__main__":
    main()
