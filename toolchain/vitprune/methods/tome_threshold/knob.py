"""Threshold merging: one similarity for all stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from vitprune.methods.base import keys_of
from vitprune.methods.knob import Dimension, Knob
from vitprune.methods.tome_threshold.keys import Params

if TYPE_CHECKING:
    from vitprune.calibration.bench import Bench
    from vitprune.methods.base import Geometry

LOWEST, HIGHEST = -1.0, 2.0  # of the key


class Similarity(Knob):
    """Similarity above which pairs merge, in the middle stage; slope: by how much the last stage's lies above the first one's."""

    def __init__(self, slope: float = 0.0) -> None:
        self.slope = slope

    integer: ClassVar[bool] = False
    rising: ClassVar[bool] = True

    def bounds(self, bench: Bench) -> tuple[float, float]:
        """From merging whatever r_max allows to merging nothing."""
        return -1.0, 1.0

    def settings(self, bench: Bench, value: float) -> dict[str, Any]:
        """Method keys at a value."""
        stages = len(keys_of(bench.recipe.prune, Params).blocks(bench.geometry))
        if not self.slope or stages == 1:
            return {"tau": round(value, 6), "capacity": None}
        steps = [self.slope * (place / (stages - 1) - 0.5) for place in range(stages)]
        return {"tau": [round(min(HIGHEST, max(LOWEST, value + step)), 6) for step in steps], "capacity": None}

    def dimensions(self, geometry: Geometry) -> list[Dimension]:
        """See `Knob.dimensions`."""
        return [
            Dimension.whole("first", 0, geometry.depth // 2), Dimension.whole("r_max", 1, max(1, geometry.patches // 3)),
            Dimension("slope", low=-0.5, high=0.5), Dimension("prop_attn", (True, False)),
        ]  # fmt: skip

    def shaped(self, chosen: dict[str, Any], geometry: Geometry) -> tuple[dict[str, Any], Knob]:
        """See `Knob.shaped`."""
        keys = {"stages": list(range(chosen["first"], geometry.depth)), "r_max": chosen["r_max"]}
        return keys | {"prop_attn": chosen["prop_attn"]}, Similarity(chosen["slope"])
