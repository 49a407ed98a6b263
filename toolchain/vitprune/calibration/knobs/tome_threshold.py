"""Threshold merging: one similarity for all stages."""

from __future__ import annotations

from typing import Any

INTEGER, RISING = False, True


def bounds(bench: Any) -> tuple[float, float]:
    """From merging whatever r_max allows to merging nothing."""
    return -1.0, 1.0


def settings(bench: Any, x: float) -> dict[str, Any]:
    """Method keys at x."""
    return {"tau": round(x, 6), "capacity": None}
