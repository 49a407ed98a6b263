"""POMT: how many tokens leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vitprune.methods.knob import Dimension, Knob, leaving

if TYPE_CHECKING:
    from vitprune.calibration.bench import Bench
    from vitprune.methods.base import Geometry, Site


class Removed(Knob):
    """Number of tokens by which the sequence gets shorter."""

    integer: ClassVar[bool] = True
    rising: ClassVar[bool] = False
    constant: ClassVar[bool] = True

    def bounds(self, bench: Bench) -> tuple[float, float]:
        """From none to all but one."""
        return 0, bench.geometry.patches - 2

    def settings(self, bench: Bench, value: float) -> dict[str, Any]:
        """Method keys at a value."""
        return {"remove": int(value)}

    def dimensions(self, geometry: Geometry) -> list[Dimension]:
        """See `Knob.dimensions`."""
        return [Dimension.whole("stage", 0, geometry.depth - 1)]

    def shaped(self, chosen: dict[str, Any], geometry: Geometry) -> tuple[dict[str, Any], Knob]:
        """See `Knob.shaped`."""
        return {"stages": [chosen["stage"]]}, self

    def with_rows(self, params: Any, sites: Sequence[Site[Any]], rows: Sequence[int]) -> dict[str, Any]:
        """See `Knob.with_rows`."""
        return {"remove": leaving(sites, rows)[0]}
