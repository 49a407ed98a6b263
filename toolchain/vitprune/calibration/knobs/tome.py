"""ToMe: the number of pairs merged in all, spread evenly over the stages (earlier ones take the rest)."""

from __future__ import annotations

from typing import Any

INTEGER, RISING = True, False


def bounds(bench: Any) -> tuple[float, float]:
    """Up to the point where hardly anything is left to merge."""
    return 0, bench.geometry.patches - 2


def settings(bench: Any, x: float) -> dict[str, Any]:
    """Method keys at x."""
    stages = len(bench.recipe.prune.blocks(bench.geometry))
    each, rest = divmod(int(x), stages)
    return {"r": [each + (stage < rest) for stage in range(stages)], "inflect": 0.0}
