"""Ward merging: the threshold of the damage, on a log scale; with fixed counts the mean counts that it leads to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vitprune.methods.base import keys_of
from vitprune.methods.knob import Dimension, Knob, leaving
from vitprune.methods.ward_merge.keys import Params

if TYPE_CHECKING:
    from vitprune.calibration.bench import Bench
    from vitprune.methods.base import Geometry, Site


class Damage(Knob):
    """Decimal logarithm of mu."""

    integer: ClassVar[bool] = False
    rising: ClassVar[bool] = False

    def bounds(self, bench: Bench) -> tuple[float, float]:
        """From merging hardly anything to merging every nearest pair."""
        return -5.0, 2.0

    def settings(self, bench: Bench, value: float) -> dict[str, Any]:
        """Method keys at a value; with fixed counts mean counts of adaptive merging are measured first."""
        keys: dict[str, Any] = {"mu": float(f"{10**value:.5g}"), "capacity": None}
        if keys_of(bench.recipe.prune, Params).counts == "adaptive":
            return keys
        measured = bench.measure(keys | {"counts": "adaptive", "r": None})
        left = [round(float(count)) for count in measured.counts.mean(axis=0)]
        before = [bench.geometry.patches, *left]
        return keys | {"r": [one - other for one, other in zip(before, left, strict=False)]}

    def dimensions(self, geometry: Geometry) -> list[Dimension]:
        """See `Knob.dimensions`."""
        sketches = tuple(size for size in (64, 128, 256) if size < geometry.width)
        return [
            Dimension.whole("first", 0, max(0, geometry.depth // 2 - 1)), Dimension("importance_power", low=0.0, high=1.0),
            Dimension.whole("rounds", 1, 3), Dimension("sketch", (*sketches, None)), Dimension("counts", ("adaptive", "fixed")),
        ]  # fmt: skip

    def beginnings(self) -> list[tuple[dict[str, Any], Knob]]:
        """See `Knob.beginnings`: adaptive and fixed counts."""
        return [({}, self), ({"counts": "fixed", "r": 0}, self)]

    def shaped(self, chosen: dict[str, Any], geometry: Geometry) -> tuple[dict[str, Any], Knob]:
        """See `Knob.shaped`; pairs of fixed counts follow from mu, none is a place to begin with."""
        keys: dict[str, Any] = {name: chosen[name] for name in ("importance_power", "rounds", "sketch", "counts")}
        keys["importance_power"] = round(keys["importance_power"], 4)
        if chosen["first"]:
            keys["stages"] = list(range(chosen["first"], max(chosen["first"] + 1, geometry.depth - 1)))
        return keys | ({"r": 0} if chosen["counts"] == "fixed" else {}), self

    def with_rows(self, params: Any, sites: Sequence[Site[Any]], rows: Sequence[int]) -> dict[str, Any]:
        """See `Knob.with_rows`; adaptive counts have none."""
        return {"r": leaving(sites, rows)} if keys_of(params, Params).counts == "fixed" else {}

    def show(self, value: float) -> str:
        """See `Knob.show`."""
        return f"mu {10**value:.4g}"
