"""One file per method: the one setting that moves its cost, as LOW and HIGH(bench), INTEGER, RISING and settings(bench, x)."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from vitprune.errors import RecipeError


def of(method: str) -> Any:
    """The knob of a method.

    Raises:
        RecipeError: VP172 there is none.
    """
    names = [entry.name for entry in pkgutil.iter_modules(__path__)]
    if method not in names:
        raise RecipeError(
            172,
            f"{method} has no setting to calibrate for a budget",
            cause=f"methods with one: {', '.join(sorted(names))}",
            next_step="vitprune thresholds BUNDLE for a cascade, or another method",
        )
    return importlib.import_module(f"vitprune.calibration.knobs.{method}")
