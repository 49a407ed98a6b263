"""POMT: how many tokens leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from vitprune.methods.knob import Knob

if TYPE_CHECKING:
    from vitprune.calibration.bench import Bench


class Removed(Knob):
    """Number of tokens by which the sequence gets shorter."""

    integer: ClassVar[bool] = True
    rising: ClassVar[bool] = False

    def bounds(self, bench: Bench) -> tuple[float, float]:
        """From none to all but one."""
        return 0, bench.geometry.patches - 2

    def settings(self, bench: Bench, value: float) -> dict[str, Any]:
        """Method keys at a value."""
        return {"remove": int(value)}
