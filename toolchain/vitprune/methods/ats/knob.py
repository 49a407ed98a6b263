"""ATS: the number of sampling points, one for all stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from vitprune.methods.knob import Knob

if TYPE_CHECKING:
    from vitprune.calibration.bench import Bench


class SamplingPoints(Knob):
    """Number of sampling points K."""

    integer: ClassVar[bool] = True
    rising: ClassVar[bool] = True

    def bounds(self, bench: Bench) -> tuple[float, float]:
        """From one point to four per patch."""
        return 1, 4 * bench.geometry.patches

    def settings(self, bench: Bench, value: float) -> dict[str, Any]:
        """Method keys at a value."""
        return {"num_samples": int(value), "capacity": None}
