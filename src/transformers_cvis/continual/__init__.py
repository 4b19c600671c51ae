# SPDX-License-Identifier: Apache-2.0
"""Learning task by task: class-incremental schedules, the methods they run, gradient correction and distillation."""

from .methods import Method, register_method
from .run import train_continual
from .schedule import Schedule, shipped_schedules

__all__ = ["Method", "Schedule", "register_method", "shipped_schedules", "train_continual"]
