"""Recipe keys and site options of ATS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from vitprune.methods.base import MethodParams, SamplingOptions

if TYPE_CHECKING:
    pass


Positive = Annotated[int, Field(gt=0, le=65536)]


Score = Literal["per_head", "pooled", "attention"]


@dataclass(frozen=True)
class AtsOptions(SamplingOptions):
    """score: "per_head" (the paper), "pooled" (the released code) or "attention" (without |V|). asking: whose attention counts."""

    score: Score = "per_head"
    asking: Literal["cls", "all"] = "cls"


class Params(MethodParams):
    """Recipe keys of ATS.

    mode: "paper" (per-head scores, patch order, mid-point grid) or "official" (the released code, one image at a time).
    num_samples: sampling points K, one for all stages or one per stage; null leaves the stage dense.
    capacity: largest number of patches a stage may keep (padded shapes); null = the method's bound min(K, P).
    value_norm: false leaves |V| out of the score, the paper's ablation.
    score: "cls" = attention from the CLS token; "mean_attention" = the mean attention a patch receives from all tokens (the score of
        LTP, Kim et al., KDD 2022, arXiv 2107.00910; with this method it is ours), for models without a CLS token.
    """

    method: Literal["ats"] = "ats"
    mode: Literal["paper", "official"] = "paper"
    stages: list[int] = Field(default=[3, 4, 5, 6, 7, 8, 9, 10, 11], min_length=1)
    num_samples: Positive | list[Positive | None] | None = 108
    capacity: Positive | list[Positive | None] | None = None
    value_norm: bool = True
    score: Literal["cls", "mean_attention"] = "cls"
