# SPDX-License-Identifier: Apache-2.0
"""Size of a task adapter: HVPL with ResNet-50 as published, a task of 10 prompts and 5 classes, float32.

Rows:

- `adapter_share`: bytes of `task_adapter_model.safetensors` with one task (ours) and of the base's `model.safetensors`
  (peer).
- `second_task_share`: bytes that a second task adds to the file.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from _harness import main, row

from transformers_cvis import HvplConfig, HvplForVideoInstanceSegmentation

NUM_PROMPTS, NUM_CLASSES, PROTECTED_DIRECTIONS = 10, 5, 64


def rows(quick: bool) -> Iterator[dict]:
    model = HvplForVideoInstanceSegmentation(HvplConfig(id2label={index: f"base {index}" for index in range(20)}))
    sizes = []
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder) / "base")
        base = os.path.getsize(Path(folder) / "base" / "model.safetensors")
        for task in (1, 2):
            model.add_task([f"class {task}.{index}" for index in range(NUM_CLASSES)], NUM_PROMPTS)
            model.protect_directions(torch.eye(256)[:, :PROTECTED_DIRECTIONS])
            model.save_task_adapter(Path(folder) / f"task-{task}")
            sizes.append(os.path.getsize(Path(folder) / f"task-{task}" / "task_adapter_model.safetensors"))
    note = f"{NUM_PROMPTS} prompts, {NUM_CLASSES} classes, {PROTECTED_DIRECTIONS} protected directions"
    yield row("adapter_share", sizes[0] / 1e6, base / 1e6, "MB", note)
    yield row("second_task_share", (sizes[1] - sizes[0]) / 1e6, base / 1e6, "MB", note)


if __name__ == "__main__":
    main("Bytes of a task adapter and of its base", rows)
