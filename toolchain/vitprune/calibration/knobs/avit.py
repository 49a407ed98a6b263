"""A-ViT: the centre of the gate of a trained model; a small shift moves all halting scores together."""

from __future__ import annotations

from typing import Any

INTEGER, RISING = False, True
REACH = 30.0  # in units of the sigmoid's argument: from halting at once to never


def bounds(bench: Any) -> tuple[float, float]:
    """Around the trained centre."""
    return bench.recipe.prune.gate_center - REACH, bench.recipe.prune.gate_center + REACH


def settings(bench: Any, x: float) -> dict[str, Any]:
    """Method keys at x."""
    return {"gate_center": round(x, 5), "capacity": None}
