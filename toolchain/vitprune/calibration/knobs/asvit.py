"""AS-ViT: thresholds such that stage n keeps x^n of all patches on average (methods.md §5.7; ours, there is no official precedent)."""

from __future__ import annotations

from typing import Any

import numpy as np

INTEGER, RISING = False, True


def bounds(bench: Any) -> tuple[float, float]:
    """Share that a stage keeps of what enters it."""
    return 1.0 / bench.geometry.patches, 1.0


def settings(bench: Any, x: float) -> dict[str, Any]:
    """Method keys at x, stage by stage: a stage's scores depend on the thresholds before it."""
    stages = len(bench.recipe.prune.stages)
    found: list[float] = []
    for number in range(stages):
        open_ended = found + [0.0] * (stages - number)
        # At threshold 0 the margin of a patch is its score; patches that are gone have none.
        score = bench.measure({"thresholds": open_ended, "capacity": None}).margin[:, number]
        found.append(between(score[np.isfinite(score)], x ** (number + 1) * bench.geometry.patches * len(score)))
    return {"thresholds": found, "capacity": None}


def between(score: Any, wanted: float) -> float:
    """A threshold that `wanted` of the scores exceed, half way between two of them."""
    ranked = np.sort(score)[::-1]
    keep = int(round(wanted))
    if keep >= len(ranked):
        return -1.0
    upper = ranked[keep - 1] if keep else ranked[0] + 1e-6
    return float((upper + ranked[keep]) / 2)
