"""ATS: the number of sampling points, one for all stages."""

from __future__ import annotations

from typing import Any

INTEGER, RISING = True, True


def bounds(bench: Any) -> tuple[float, float]:
    """From one point to four per patch."""
    return 1, 4 * bench.geometry.patches


def settings(bench: Any, x: float) -> dict[str, Any]:
    """Method keys at x."""
    return {"num_samples": int(x), "capacity": None}
