"""ToMe: the number of pairs merged in all, spread over the stages evenly or falling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from vitprune.methods.base import keys_of
from vitprune.methods.knob import Dimension, Knob, leaving
from vitprune.methods.tome.keys import Params

if TYPE_CHECKING:
    from vitprune.calibration.bench import Bench
    from vitprune.methods.base import Geometry, Site

FALLING = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)  # powers of the share of stages that are still to come


class MergedPairs(Knob):
    """Number of pairs merged in all.

    power: every stage takes part in proportion to the share of stages from it on, to this power; 0 = evenly, 1 = falling linearly.
    """

    integer: ClassVar[bool] = True
    rising: ClassVar[bool] = False
    constant: ClassVar[bool] = True
    schedules: ClassVar[tuple[str, ...]] = ("constant", "falling", "best")

    def __init__(self, power: float = 0.0) -> None:
        self.power = power

    def forms(self, schedule: str) -> list[Knob]:
        """See `Knob.forms`: even, the falling ones, or all of them."""
        powers = {"constant": (0.0,), "falling": FALLING, "best": (0.0, *FALLING)}[schedule]
        return [MergedPairs(power) for power in powers]

    def beginnings(self) -> list[tuple[dict[str, Any], Knob]]:
        """See `Knob.beginnings`: a few powers, since a search varies them too."""
        return [({}, MergedPairs(power)) for power in (0.0, *FALLING[1::2])]

    def bounds(self, bench: Bench) -> tuple[float, float]:
        """Up to the point where hardly anything is left to merge."""
        return 0, bench.geometry.patches - 2

    def settings(self, bench: Bench, value: float) -> dict[str, Any]:
        """Method keys at a value."""
        stages = len(keys_of(bench.recipe.prune, Params).blocks(bench.geometry))
        return {"r": spread(int(value), stages, self.power, bench.geometry.patches), "inflect": 0.0}

    def dimensions(self, geometry: Geometry) -> list[Dimension]:
        """See `Knob.dimensions`."""
        return [
            Dimension.whole("first", 0, geometry.depth // 2), Dimension("power", low=0.0, high=6.0),
            Dimension("prop_attn", (True, False)),
        ]  # fmt: skip

    def shaped(self, chosen: dict[str, Any], geometry: Geometry) -> tuple[dict[str, Any], Knob]:
        """See `Knob.shaped`."""
        keys = {"stages": list(range(chosen["first"], geometry.depth)), "prop_attn": chosen["prop_attn"]}
        return keys, MergedPairs(chosen["power"])

    def with_rows(self, params: Any, sites: Sequence[Site[Any]], rows: Sequence[int]) -> dict[str, Any]:
        """See `Knob.with_rows`."""
        return {"r": leaving(sites, rows), "inflect": 0.0}

    def show(self, value: float) -> str:
        """See `Knob.show`."""
        return f"{int(value)} pairs" + (f" falling with power {self.power:g}" if self.power else "")


def spread(total: int, stages: int, power: float, patches: int) -> list[int]:
    """Pairs per stage, adding up to `total` as far as half of what is left at every stage allows; earlier stages take the rest."""
    weights = [((stages - stage) / stages) ** power for stage in range(stages)]
    taken: list[int] = []
    left = patches
    for stage, weight in enumerate(weights):
        rest = total - sum(taken)
        due = rest * weight / sum(weights[stage:])
        r = min(-int(-due // 1), rest, left // 2)
        taken.append(r)
        left -= r
    return taken
