# SPDX-License-Identifier: Apache-2.0
"""Training: recipes, the trainer on Accelerate, checkpoints that resume bit for bit."""

from .build import build_dataset
from .callbacks import TrainingCallback
from .recipe import Recipe, shipped_recipes
from .train import train
from .trainer import Trainer

__all__ = [
    "Recipe",
    "Trainer",
    "TrainingCallback",
    "build_dataset",
    "shipped_recipes",
    "train",
]
