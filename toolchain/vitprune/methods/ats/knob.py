"""ATS: the number of sampling points, one for all stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from vitprune.methods.knob import Dimension, Knob, every, falling, places

if TYPE_CHECKING:
    from vitprune.calibration.bench import Bench
    from vitprune.methods.base import Geometry


class SamplingPoints(Knob):
    """Number of sampling points K of the first stage; power: of the share by which it falls to the last, 0 = the same for all."""

    def __init__(self, power: float = 0.0) -> None:
        self.power = power

    integer: ClassVar[bool] = True
    rising: ClassVar[bool] = True

    def bounds(self, bench: Bench) -> tuple[float, float]:
        """From one point to four per patch."""
        return 1, 4 * bench.geometry.patches

    def settings(self, bench: Bench, value: float) -> dict[str, Any]:
        """Method keys at a value."""
        if not self.power:
            return {"num_samples": int(value), "capacity": None}
        shares = falling(bench.recipe.prune.stages, self.power)
        return {"num_samples": [max(1, round(value * share)) for share in shares], "capacity": None}

    def dimensions(self, geometry: Geometry) -> list[Dimension]:
        """See `Knob.dimensions`."""
        return [*places(geometry), Dimension("power", low=0.0, high=2.0), Dimension("value_norm", (True, False))]

    def shaped(self, chosen: dict[str, Any], geometry: Geometry) -> tuple[dict[str, Any], Knob]:
        """See `Knob.shaped`."""
        keys = {"stages": every(chosen["first"], chosen["step"], geometry.depth), "value_norm": chosen["value_norm"]}
        return keys, SamplingPoints(chosen["power"])
