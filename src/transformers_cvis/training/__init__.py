"""Training: recipes, the trainer on Accelerate, checkpoints that resume bit for bit, evaluation of a model."""

from .recipe import Recipe, shipped_recipes
from .trainer import Trainer

__all__ = ["Recipe", "Trainer", "shipped_recipes"]
