"""Learning task by task: class-incremental schedules, the methods they run, gradient correction and distillation."""

from .run import train_continual
from .schedule import Schedule, shipped_schedules

__all__ = ["Schedule", "shipped_schedules", "train_continual"]
