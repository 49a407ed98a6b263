"""Recipe keys and site options of ATS with merged drops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitprune.methods._merging.keys import MergingOptions
from vitprune.methods.ats.keys import AtsOptions
from vitprune.methods.ats.keys import Params as AtsParams


@dataclass(frozen=True)
class AtsMergeOptions(AtsOptions, MergingOptions):
    """Options of ATS and of merging."""


class Params(AtsParams):
    """Recipe keys of ATS (mode, stages, num_samples, capacity) and of merging.

    dropped: always "merge"; it says what becomes of a patch that is not sampled.
    prop_attn: add log(size) to the key logits of later blocks. trace: also output `group_<block>`, int64 [B,P]: for every original
    patch the patch that represents its row.
    """

    method: Literal["ats_merge"] = "ats_merge"  # type: ignore[assignment]
    dropped: Literal["merge"] = "merge"
    prop_attn: bool = True
    trace: bool = False
