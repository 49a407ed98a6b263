"""ToMe: the number of pairs merged in all, spread evenly over the stages (earlier ones take the rest)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from vitprune.methods.base import keys_of
from vitprune.methods.knob import Knob
from vitprune.methods.tome.keys import Params

if TYPE_CHECKING:
    from vitprune.calibration.bench import Bench


class MergedPairs(Knob):
    """Number of pairs merged in all."""

    integer: ClassVar[bool] = True
    rising: ClassVar[bool] = False

    def bounds(self, bench: Bench) -> tuple[float, float]:
        """Up to the point where hardly anything is left to merge."""
        return 0, bench.geometry.patches - 2

    def settings(self, bench: Bench, value: float) -> dict[str, Any]:
        """Method keys at a value."""
        stages = len(keys_of(bench.recipe.prune, Params).blocks(bench.geometry))
        each, rest = divmod(int(value), stages)
        return {"r": [each + (stage < rest) for stage in range(stages)], "inflect": 0.0}
