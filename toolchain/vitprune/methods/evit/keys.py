"""Recipe keys and site options of EViT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from vitprune.methods._dropping.sites import Count, Rate
from vitprune.methods.base import MethodParams
from vitprune.methods.train_keys import TrainKeys

if TYPE_CHECKING:
    pass


class Params(MethodParams):
    """Recipe keys of EViT.

    keep_rate: share of the entering tokens (patches and earlier fused tokens) that a stage keeps, rounded up.
    keep: tokens a stage keeps, one number or one per stage; wins over keep_rate.
    fuse: put the score-weighted sum of the dropped tokens behind the kept ones.
    score: "cls" = attention from the CLS token; "mean_attention" = the mean attention a patch receives from all tokens (the score of
        LTP, Kim et al., KDD 2022, arXiv 2107.00910; with this method it is ours), for models without a CLS token.
    """

    method: Literal["evit"] = "evit"
    stages: list[int] = Field(default=[3, 6, 9], min_length=1)
    keep_rate: Rate | list[Rate] = 0.7
    keep: Count | list[Count] | None = None
    fuse: bool = True
    score: Literal["cls", "mean_attention"] = "cls"


class Train(TrainKeys):
    """Recipe keys of training EViT.

    ramp: two epochs between which keep_rate falls from 1 to its value along a cosine (10 and 110 in training from scratch); null =
    as in the recipe from the start.
    """

    ramp: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)] | None = None
