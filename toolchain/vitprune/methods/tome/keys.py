"""Recipe keys and site options of ToMe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from vitprune.errors import RecipeError
from vitprune.methods._merging.keys import Count, MergingOptions, MergingParams
from vitprune.methods.base import per_stage

if TYPE_CHECKING:
    pass


class Params(MergingParams):
    """Recipe keys of ToMe (stages, prop_attn, trace: see `MergingParams`).

    r: pairs merged per block: one number, or one per stage. More than half of the patches cannot merge at once; r is cut to that.
    inflect: with one number r, the slope of a linear schedule from r*(1 - inflect) in the first stage to r*(1 + inflect) in the
    last, rounded down; -1 falls from 2r to 0.
    """

    method: Literal["tome"] = "tome"
    r: Count | list[Count] = 13
    inflect: float = Field(default=0.0, ge=-1, le=1)


@dataclass(frozen=True)
class TomeOptions(MergingOptions):
    """r: pairs that merge."""

    r: int = 0

    @property
    def idle(self) -> bool:
        """See `MergingOptions.idle`."""
        return self.bypass or self.r == 0


def schedule(r: int | Sequence[int], inflect: float, stages: Sequence[int]) -> list[int]:
    """Pairs to merge at every stage.

    Raises:
        RecipeError: VP130 when a list comes with an inflect, VP111 when it has a wrong length.
    """
    if not isinstance(r, int):
        if inflect:
            raise RecipeError(
                130,
                "prune.inflect goes with a single prune.r",
                cause=f"r is a list of {len(r)} numbers, which is a schedule already",
                next_step="remove prune.inflect, or give one number as prune.r",
            )
        return per_stage(list(r), stages, "r")
    if len(stages) == 1:
        return [r]
    slope, last = Fraction(str(inflect)), len(stages) - 1
    return [int(r * (1 + slope * (Fraction(2 * place, last) - 1))) for place in range(len(stages))]
