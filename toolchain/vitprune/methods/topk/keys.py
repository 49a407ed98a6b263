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
    score: "cls" = attention from the CLS token; "mean_attention" = the mean attention a patch receives from all tokens (the score of
        LTP, Kim et al., KDD 2022, arXiv 2107.00910; with this method it is ours), for models without a CLS token.
    """

    method: Literal["topk"] = "topk"
    stages: list[int] = Field(default=[3, 6, 9], min_length=1)
    keep_rate: Rate | list[Rate] = 0.7
    keep: Count | list[Count] | None = None
    score: Literal["cls", "mean_attention"] = "cls"
