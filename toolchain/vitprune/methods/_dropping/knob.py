"""Methods that keep a fixed share: one keep rate for all stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from vitprune.methods._dropping.sites import keep_rates
from vitprune.methods.knob import Knob

if TYPE_CHECKING:
    from vitprune.calibration.bench import Bench


class KeepRate(Knob):
    """Share of the entering patches that every stage keeps."""

    integer: ClassVar[bool] = False
    rising: ClassVar[bool] = True

    def bounds(self, bench: Bench) -> tuple[float, float]:
        """From one patch to all."""
        return 1.0 / bench.geometry.patches, 1.0

    def settings(self, bench: Bench, value: float) -> dict[str, Any]:
        """Method keys at a value, rounded to four digits."""
        return keep_rates(round(value, 4))
