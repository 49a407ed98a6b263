"""Recipe keys and site options of threshold merging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from vitprune.methods._merging.keys import Count, MergingOptions, MergingParams
from vitprune.methods.base import SamplingOptions

if TYPE_CHECKING:
    pass


Similarity = Annotated[float, Field(ge=-1, le=2)]

Positive = Annotated[int, Field(gt=0, le=65536)]


class Params(MergingParams):
    """Recipe keys of threshold merging (stages, prop_attn, trace: see `MergingParams`).

    tau: a pair merges only if its cosine similarity exceeds this; one for all stages or one per stage. Above 1 nothing merges.
    r_max: most pairs merged per block, one number or one per stage; cut to half of the fewest patches that can be left.
    capacity: largest number of rows a stage may leave; where tau would leave more, the most similar pairs merge regardless.
    null = no limit: in padded shapes a stage then keeps as many slots as enter it.
    """

    method: Literal["tome_threshold"] = "tome_threshold"
    tau: Similarity | list[Similarity] = 0.9
    r_max: Count | list[Count] = 8
    capacity: Positive | list[Positive | None] | None = None


@dataclass(frozen=True)
class TomeThresholdOptions(MergingOptions, SamplingOptions):
    """tau, r_max: as in `Params`, r_max cut to what can be. most: rows the site may leave, None = no limit."""

    tau: float = 0.9
    r_max: int = 0
    most: int | None = None

    @property
    def idle(self) -> bool:
        """See `MergingOptions.idle`."""
        return self.bypass or self.r_max == 0
