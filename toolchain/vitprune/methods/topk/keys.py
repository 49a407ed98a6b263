"""Recipe keys and site options of top-k."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from vitprune.methods._dropping.sites import Count, Rate
from vitprune.methods.base import MethodParams

if TYPE_CHECKING:
    pass


class Params(MethodParams):
    """Recipe keys of top-k.

    keep_rate: share of the entering patches that a stage keeps, rounded up; one for all stages or one per stage.
    keep: patches a stage keeps, one number or one per stage; wins over keep_rate.
    """

    method: Literal["topk"] = "topk"
    stages: list[int] = Field(default=[3, 6, 9], min_length=1)
    keep_rate: Rate | list[Rate] = 0.7
    keep: Count | list[Count] | None = None
