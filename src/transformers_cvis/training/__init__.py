"""Training: recipes, the trainer on Accelerate, checkpoints that resume bit for bit."""

from .building import build_dataset
from .recipe import Recipe, shipped_recipes
from .running import train
from .trainer import Trainer

__all__ = ["Recipe", "Trainer", "build_dataset", "shipped_recipes", "train"]
