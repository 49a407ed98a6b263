"""Ward merging: the threshold of the damage, on a log scale; with fixed counts the mean counts that it leads to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from vitprune.methods.base import keys_of
from vitprune.methods.knob import Knob
from vitprune.methods.ward_merge.keys import Params

if TYPE_CHECKING:
    from vitprune.calibration.bench import Bench


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

    def show(self, value: float) -> str:
        """See `Knob.show`."""
        return f"mu {10**value:.4g}"
