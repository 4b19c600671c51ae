"""Training: recipes and class-incremental schedules, the trainer on Accelerate, checkpoints that resume bit for bit."""

from .building import build_dataset
from .continual import train_continual
from .recipe import Recipe, shipped_recipes
from .running import train
from .schedule import Schedule, shipped_schedules
from .trainer import Trainer

__all__ = [
    "Recipe",
    "Schedule",
    "Trainer",
    "build_dataset",
    "shipped_recipes",
    "shipped_schedules",
    "train",
    "train_continual",
]
