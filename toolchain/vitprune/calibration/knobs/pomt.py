"""POMT: how many tokens leave."""

from __future__ import annotations

from typing import Any

INTEGER, RISING = True, False


def bounds(bench: Any) -> tuple[float, float]:
    """From none to all but one."""
    return 0, bench.geometry.patches - 2


def settings(bench: Any, x: float) -> dict[str, Any]:
    """Method keys at x."""
    return {"remove": int(x)}
