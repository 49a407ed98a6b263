"""DynamicViT: the keep rate; its predictors were trained for another one, so small changes only."""

from __future__ import annotations

from typing import Any

from vitprune.calibration.knobs.topk import INTEGER as INTEGER
from vitprune.calibration.knobs.topk import RISING as RISING
from vitprune.calibration.knobs.topk import settings as settings


def bounds(bench: Any) -> tuple[float, float]:
    """The last stage keeps one patch at least."""
    stages = len(bench.recipe.prune.stages)
    return (1.0 / bench.geometry.patches) ** (1 / stages) + 1e-3, 1.0
