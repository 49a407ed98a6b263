"""Recipe keys and site options shared by the methods that merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, field_validator

from vitprune.methods.base import Geometry, MethodParams, SiteOptions

Count = Annotated[int, Field(ge=0, le=65536)]
NORM_FLOOR = 1e-12  # a metric of length zero stays zero instead of becoming NaN


@dataclass(frozen=True)
class MergingOptions(SiteOptions):
    """proportional, trace: `prop_attn` and `trace` of `MergingParams`."""

    proportional: bool = True
    trace: bool = False

    @property
    def idle(self) -> bool:
        """Nothing can merge at the site."""
        return self.bypass


class MergingParams(MethodParams):
    """Keys of the methods that merge by bipartite matching.

    stages: blocks that merge; null = every block.
    prop_attn: add log(size) to the key logits, so that a row of n patches attracts as much attention as the n patches did.
    trace: also output `group_<block>`, int64 [B,P]: for every original patch the patch that represents its row.
    """

    stages: list[int] | None = None  # type: ignore[assignment]
    prop_attn: bool = True
    trace: bool = False

    @field_validator("stages")
    @classmethod
    def _ascending(cls, stages: list[int] | None) -> list[int] | None:  # type: ignore[override]
        return stages if stages is None else _distinct(stages)

    def blocks(self, geometry: Geometry) -> list[int]:
        """Blocks that merge, in order."""
        return list(range(geometry.depth)) if self.stages is None else self.stages


def _distinct(stages: list[int]) -> list[int]:
    if not stages or any(stage < 0 for stage in stages):
        raise ValueError("stages are block numbers counted from 0; null means every block")
    if stages != sorted(set(stages)):
        raise ValueError(f"stages must ascend without repetition; in order they are {sorted(set(stages))}")
    return stages
