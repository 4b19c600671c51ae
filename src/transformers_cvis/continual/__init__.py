# SPDX-License-Identifier: Apache-2.0
"""Class-incremental learning: schedules, methods, gradient correction and distillation."""

from .methods import Method, register_method
from .run import train_continual
from .schedule import Schedule, shipped_schedules

__all__ = ["Method", "Schedule", "register_method", "shipped_schedules", "train_continual"]
