# SPDX-License-Identifier: Apache-2.0
"""Tiny checkpoint files with the names of research code, and the models converted from them."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tests.support.detectron2_names import Shapes, random_state_dict
from transformers_cvis import AutoModelForVideoInstanceSegmentation

CLASSES = ["cat", "dog", "cow", "hen", "fox"]
TASK_CLASSES = ["cat", "dog", "cow", "hen", "fox", "owl"]  # of three tasks with three, two and one class


def save_checkpoint(folder: Path, shapes: Shapes, **other: Any) -> str:
    """Write `model_final.pth` with random tensors of these shapes and other content, and return its path."""
    path = folder / "model_final.pth"
    torch.save({"model": random_state_dict(shapes), **other}, path)
    return str(path)


def load_model(folder: str | os.PathLike[str]) -> PreTrainedModel:
    """Load a converted model and check that its weights fit."""
    model, info = AutoModelForVideoInstanceSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    return model
