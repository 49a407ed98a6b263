"""A latency table: what one block, and a method's site in it, cost on a device by token count; and a budget counted with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vitprune.calibration.bench import Bench
from vitprune.device.profiling import Sizes, Tokens, block_time
from vitprune.errors import LoadError, RecipeError
from vitprune.methods.base import BlockTokens, Geometry, Site
from vitprune.support import json_text
from vitprune.support.files import read_text
from vitprune.tuning.budget import held


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Curve(_Part):
    """Milliseconds by token count (prefix included), counts ascending; straight lines between them, constant below the first."""

    tokens: list[int] = Field(min_length=2, max_length=10000)
    milliseconds: list[float]

    @model_validator(mode="after")
    def _in_order(self) -> Curve:
        if len(self.tokens) != len(self.milliseconds) or self.tokens != sorted(set(self.tokens)) or self.tokens[0] < 1:
            raise ValueError("tokens ascend from 1 on, with one number of milliseconds each")
        if not all(np.isfinite(value) and value >= 0 for value in self.milliseconds):
            raise ValueError("milliseconds are finite and not negative")
        return self

    def at(self, tokens: float) -> float:
        """Milliseconds at a count; beyond the last one the last slope goes on."""
        if tokens > self.tokens[-1]:
            (a, b), (c, d) = self.tokens[-2:], self.milliseconds[-2:]
            return max(0.0, d + (tokens - b) * (d - c) / (b - a))
        return float(np.interp(tokens, self.tokens, self.milliseconds))


class Batch(_Part):
    """Of one batch size: the model without blocks, one block, and what a method's site adds to its block."""

    rest: Curve
    block: Curve
    sites: dict[str, Curve]


class Model(_Part):
    """Sizes of the blocks that were measured."""

    width: int
    heads: int
    mlp_hidden: int
    prefix: int


class LatencyTable(_Part):
    """device: where and how it was measured, for people. batches: by batch size."""

    schema_version: Literal[1] = 1
    device: dict[str, Any]
    model: Model
    batches: dict[int, Batch] = Field(min_length=1)


def read_table(path: Path) -> LatencyTable:
    """Read a table.

    Raises:
        LoadError: VP647 it cannot be read, VP648 it is not a table.
    """
    try:
        return LatencyTable.model_validate(json_text.parse(read_text(path)))
    except OSError as error:
        raise LoadError(
            647, f"latency table '{path}' cannot be read", cause=error.strerror or str(error),
            next_step="vitprune benchmark MODEL --profile-tokens -o table.json makes one",
        ) from error  # fmt: skip
    except (ValidationError, ValueError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        where = "" if first is None else ".".join(str(part) for part in first["loc"])
        cause = " ".join(str(error).split())[:200] if first is None else f"{where}: {first['msg']}"
        raise LoadError(648, f"'{path}' is no latency table", cause=cause, next_step="make it again") from error


class TableLatency:
    """Share of the dense latency by a table (see `vitprune.tuning.trial.Spending`)."""

    slack = 1.0
    direct = True

    def __init__(self, table: LatencyTable, batch: int, sizes: Geometry) -> None:
        self.batch, self.sizes = batch, sizes
        self.part = table.batches[batch]
        self.curve: Curve | None = self.part.block

    def exact(self, bench: Bench, prune: dict[str, Any], counts: NDArray[np.int64]) -> float:
        """See `Spending`; an image waits for the fullest one of its batch."""
        recipe = bench.with_prune(prune)
        sites = bench.method.sites(recipe.prune, bench.geometry)
        whole = len(counts) // self.batch * self.batch
        together = counts[:whole].reshape(-1, self.batch, counts.shape[1]).max(axis=1) if whole else counts
        kept = held(recipe, [site.limit for site in sites], together)
        blocks = bench.method.block_tokens(sites, bench.geometry, [float(value) for value in kept])
        return self.milliseconds(bench.method.name, blocks, sites) / self.dense()

    scouted = exact

    def dense(self) -> float:
        """Milliseconds of the dense model."""
        return self.part.rest.at(self.sizes.tokens) + self.sizes.depth * self.part.block.at(self.sizes.tokens)

    def milliseconds(self, method: str, blocks: list[BlockTokens], sites: list[Site[Any]]) -> float:
        """Milliseconds of a pruned model from the token counts of its blocks.

        Raises:
            RecipeError: VP184 the table does not know the method's site.
        """
        total = self.part.rest.at(self.sizes.tokens) + sum(self.block(one) for one in blocks)
        for site in sites:
            if getattr(site.options, "idle", site.options.bypass):
                continue
            if method not in self.part.sites:
                raise RecipeError(
                    184, f"the latency table has no site of {method}", cause=f"it has {', '.join(sorted(self.part.sites)) or 'none'}",
                    next_step=f"vitprune benchmark MODEL --profile-tokens --method {method} -o table.json",
                )  # fmt: skip
            total += self.part.sites[method].at(blocks[site.block].entering)
        return total

    def block(self, tokens: BlockTokens) -> float:
        """One block: attention at the tokens that enter (less where queries are pruned), the MLP at its rows."""
        sizes = Sizes(self.sizes.width, self.sizes.heads, self.sizes.mlp_hidden, self.sizes.prefix)
        return block_time(sizes, Tokens(tokens.entering, tokens.queries, tokens.mlp), self.part.block.at)


def table_for(path: Path, batch: int, sizes: Geometry) -> TableLatency:
    """A table that fits a model.

    Raises:
        RecipeError: VP185 it is of other blocks or lacks the batch. LoadError: VP647, VP648.
    """
    table = read_table(path)
    own = Model(width=sizes.width, heads=sizes.heads, mlp_hidden=sizes.mlp_hidden, prefix=sizes.prefix)
    problem = ""
    if table.model != own:
        problem = f"it is of blocks with {_sizes(table.model)}, the model has {_sizes(own)}"
    elif batch not in table.batches:
        problem = f"it has batch sizes {', '.join(map(str, sorted(table.batches)))}, asked for is {batch}"
    elif (last := table.batches[batch].block.tokens[-1]) < sizes.tokens:
        problem = f"it ends at {last} tokens, the model has {sizes.tokens}"
    if problem:
        raise RecipeError(
            185,
            f"the latency table '{path}' does not fit",
            cause=problem,
            next_step="make one for the model: vitprune benchmark MODEL --profile-tokens",
        )
    return TableLatency(table, batch, sizes)


def _sizes(model: Model) -> str:
    return json.dumps(model.model_dump())
