"""Sites that keep a constant number of tokens: their keys, options and cost (EViT, top-k, POMT, DynamicViT)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from vitprune.errors import RecipeError
from vitprune.methods.base import BlockTokens, Geometry, Site, SiteOptions

Count = Annotated[int, Field(gt=0, le=65536)]
Rate = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class FixedRateOptions(SiteOptions):
    """score: "cls" = mean CLS attention, "mean_attention" = from all tokens, "columns" = POMT's. slots: tokens behind the prefix that enter. keep: how many of them stay.

    combine: what becomes of the others: None = nothing, "weighted" = one token, their score-weighted sum (EViT), "mean" = one token,
    their mean (POMT).
    """

    score: Literal["cls", "mean_attention", "columns"] = "cls"
    slots: int = 0
    keep: int = 0
    combine: Literal["weighted", "mean"] | None = None


def keep_rates(rates: float | list[float]) -> dict[str, Any]:
    """Method keys for keep rates, one for all stages or one per stage."""
    return {"keep_rate": rates, "keep": None}


def rows_after(site: Site[FixedRateOptions]) -> int:
    """Tokens behind the prefix after a fixed-rate site: the kept ones and the combined one, if there is one."""
    return site.options.keep + (site.options.combine is not None)


def fixed_block_tokens(sites: Sequence[Site[FixedRateOptions]], geometry: Geometry) -> list[BlockTokens]:
    """Token counts with constant counts per site.

    With a combined token the rows of dropped tokens are needed after attention, so only the MLP is spared in the block of the
    site; without one their queries are not computed either.
    """
    at = {site.block: site for site in sites}
    blocks, tokens = [], geometry.tokens
    for block in range(geometry.depth):
        site = at.get(block)
        rows = tokens if site is None else geometry.prefix + rows_after(site)
        whole = site is not None and site.options.combine is not None
        blocks.append(BlockTokens(tokens, tokens if whole else rows, rows))
        tokens = rows
    return blocks


def kept_count(block: int, entering: int, rate: float, count: int | None) -> int:
    """Tokens kept out of `entering`: `count`, else the rate rounded up (float64, as the published code does).

    Raises:
        RecipeError: VP120 when the count is larger than what enters.
    """
    if count is None:
        return min(entering, math.ceil(rate * entering))
    if count > entering:
        raise RecipeError(
            120,
            f"stage {block} is to keep {count} of {entering} tokens",
            cause=f"only {entering} tokens enter block {block}; the counts of prune.keep must not rise",
            next_step=f"keep at most {entering} at stage {block}",
        )
    return count
