"""Threshold merging: one similarity for all stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from vitprune.methods.knob import Knob

if TYPE_CHECKING:
    from vitprune.calibration.bench import Bench


class Similarity(Knob):
    """Similarity above which pairs merge."""

    integer: ClassVar[bool] = False
    rising: ClassVar[bool] = True

    def bounds(self, bench: Bench) -> tuple[float, float]:
        """From merging whatever r_max allows to merging nothing."""
        return -1.0, 1.0

    def settings(self, bench: Bench, value: float) -> dict[str, Any]:
        """Method keys at a value."""
        return {"tau": round(value, 6), "capacity": None}
