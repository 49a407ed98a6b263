"""A-ViT: the centre of the gate of a trained model; a small shift moves all halting scores together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from vitprune.methods.avit.keys import Params
from vitprune.methods.base import keys_of
from vitprune.methods.knob import Knob

if TYPE_CHECKING:
    from vitprune.calibration.bench import Bench

REACH = 30.0  # in units of the sigmoid's argument: from halting at once to never


class GateCenter(Knob):
    """Centre of the halting score's gate."""

    integer: ClassVar[bool] = False
    rising: ClassVar[bool] = True

    def bounds(self, bench: Bench) -> tuple[float, float]:
        """Around the trained centre."""
        centre = keys_of(bench.recipe.prune, Params).gate_center
        return centre - REACH, centre + REACH

    def settings(self, bench: Bench, value: float) -> dict[str, Any]:
        """Method keys at a value."""
        return {"gate_center": round(value, 5), "capacity": None}
