"""DynamicViT: the keep rate; its predictors were trained for another one, so small changes only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitprune.methods._dropping.knob import KeepRate

if TYPE_CHECKING:
    from vitprune.calibration.bench import Bench


class PredictedKeepRate(KeepRate):
    """Share kept per stage, with one patch at least behind the last."""

    def bounds(self, bench: Bench) -> tuple[float, float]:
        """The last stage keeps one patch at least."""
        stages = len(bench.recipe.prune.stages)
        return (1.0 / bench.geometry.patches) ** (1 / stages) + 1e-3, 1.0
