"""Methods that keep a fixed share: one keep rate for all stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vitprune.methods._dropping.sites import keep_rates
from vitprune.methods.knob import Dimension, Knob, every, places

if TYPE_CHECKING:
    from vitprune.calibration.bench import Bench
    from vitprune.methods.base import Geometry, Site

FEWEST = 1e-4  # keep rates have four digits and are above 0


class KeepRate(Knob):
    """Share of the entering patches that every stage keeps.

    slope: 0 = one rate for all stages; towards 1 the first stages drop more and the last ones less, towards -1 the other way.
    """

    def __init__(self, slope: float = 0.0) -> None:
        self.slope = slope

    integer: ClassVar[bool] = False
    rising: ClassVar[bool] = True
    constant: ClassVar[bool] = True

    def bounds(self, bench: Bench) -> tuple[float, float]:
        """From one patch to all."""
        return 1.0 / bench.geometry.patches, 1.0

    def settings(self, bench: Bench, value: float) -> dict[str, Any]:
        """Method keys at a value, rounded to four digits."""
        stages = len(bench.recipe.prune.stages)
        if not self.slope or stages == 1:
            return keep_rates(round(value, 4))
        powers = [1 + self.slope * (1 - 2 * place / (stages - 1)) for place in range(stages)]
        return keep_rates([max(FEWEST, round(value**power, 4)) for power in powers])

    def dimensions(self, geometry: Geometry) -> list[Dimension]:
        """See `Knob.dimensions`."""
        return [*places(geometry), Dimension("slope", low=-1.0, high=1.0)]

    def shaped(self, chosen: dict[str, Any], geometry: Geometry) -> tuple[dict[str, Any], Knob]:
        """See `Knob.shaped`."""
        return {"stages": every(chosen["first"], chosen["step"], geometry.depth)}, type(self)(chosen["slope"])

    def with_rows(self, params: Any, sites: Sequence[Site[Any]], rows: Sequence[int]) -> dict[str, Any]:
        """See `Knob.with_rows`; a token that stands for the others is one of the rows."""
        added = [getattr(site.options, "combine", None) is not None for site in sites]
        return {"keep": [max(1, count - more) for count, more in zip(rows, added, strict=True)]}
