"""Top-k: one keep rate for all stages."""

from __future__ import annotations

from typing import Any

INTEGER, RISING = False, True


def bounds(bench: Any) -> tuple[float, float]:
    """From one patch to all."""
    return 1.0 / bench.geometry.patches, 1.0


def settings(bench: Any, x: float) -> dict[str, Any]:
    """Method keys at x, rounded to four digits."""
    return {"keep_rate": round(x, 4), "keep": None}
