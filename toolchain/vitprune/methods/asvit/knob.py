"""AS-ViT: thresholds such that stage n keeps x^n of all patches on average (methods.md §5.7; ours, there is no official precedent)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitprune.methods.asvit.keys import with_thresholds
from vitprune.methods.knob import Knob

if TYPE_CHECKING:
    from vitprune.calibration.bench import Bench


class KeptShare(Knob):
    """Share that every stage keeps of what enters it."""

    def bounds(self, bench: Bench) -> tuple[float, float]:
        """From one patch to all."""
        return 1.0 / bench.geometry.patches, 1.0

    def settings(self, bench: Bench, value: float) -> dict[str, Any]:
        """Method keys at a value, stage by stage: a stage's scores depend on the thresholds before it."""
        stages = len(bench.recipe.prune.stages)
        found: list[float] = []
        for number in range(stages):
            open_ended = found + [0.0] * (stages - number)
            # At threshold 0 the margin of a patch is its score; patches that are gone have none.
            score = bench.measure({**with_thresholds(open_ended), "capacity": None}).margin[:, number]
            wanted = value ** (number + 1) * bench.geometry.patches * len(score)
            found.append(between(score[np.isfinite(score)], wanted))
        return {**with_thresholds(found), "capacity": None}


def between(score: NDArray[np.float64], wanted: float) -> float:
    """A threshold that `wanted` of the scores exceed, half way between two of them."""
    ranked = np.sort(score)[::-1]
    keep = int(round(wanted))
    if keep >= len(ranked):
        return -1.0
    upper = ranked[keep - 1] if keep else ranked[0] + 1e-6
    return float((upper + ranked[keep]) / 2)
