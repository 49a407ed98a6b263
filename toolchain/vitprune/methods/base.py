"""What every method declares: its parameters, its prune sites and what it needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator
from typing_extensions import Self

from vitprune.errors import RecipeError
from vitprune.training.keys import TrainKeys

T = TypeVar("T")


@dataclass(frozen=True)
class Geometry:
    """Sizes of a dense ViT: blocks, patches P, prefix tokens (CLS, registers), width C, heads H, MLP hidden width.

    keys: rows of keys and values where their number does not follow the tokens (strided projections of CvT); 0 = as many as tokens.
    """

    depth: int
    patches: int
    prefix: int
    width: int
    heads: int
    mlp_hidden: int
    embed_macs: int = 0
    classes: int = 0
    has_cls: bool = True
    keys: int = 0

    @property
    def tokens(self) -> int:
        """N = prefix + patches."""
        return self.prefix + self.patches


@dataclass(frozen=True)
class BlockTokens:
    """Token counts (prefix included) in one block, for the cost model.

    entering: rows of keys and values. queries: rows of queries, attention and projection. mlp: rows of the MLP.
    """

    entering: float
    queries: float
    mlp: float


@dataclass(frozen=True)
class Site:
    """One prune site, ready to be carried out by the reference and by the graph pass of the method's kind.

    Attributes:
        block: 0-based block in (or before) which tokens leave.
        patches: largest number of patch tokens that can enter the site.
        limit: largest number of patch tokens that can leave it (static bound, capacity applied).
        options: the kind's own settings (score form, grid, number of samples, ...).
    """

    block: int
    patches: int
    limit: int
    options: Mapping[str, Any] = field(default_factory=dict)


class MethodParams(BaseModel):
    """Keys of `prune:` common to all methods."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    paths: ClassVar[tuple[str, ...]] = ()  # keys that name files

    method: str
    stages: list[int] = Field(min_length=1)

    @field_validator("stages")
    @classmethod
    def _ascending(cls, stages: list[int]) -> list[int]:
        if any(stage < 0 for stage in stages):
            raise ValueError("stages are block numbers counted from 0")
        if stages != sorted(set(stages)):
            raise ValueError(f"stages must ascend without repetition; in order they are {sorted(set(stages))}")
        return stages

    def portable(self) -> Self:
        """The same parameters without directories of this machine, for a bundle."""
        return self


class Method(ABC):
    """Descriptor of one method.

    Class attributes:
        name: as in recipes. summary, paper: one line each.
        kind: name of the module in `reference/` and of the pass in `graph/passes/` that carry its sites out.
        params: pydantic model of its recipe keys.
        needs_cls: scores come from the CLS row. training: "none", "optional" or "required".
        train: pydantic model of the recipe's `train:` section, with the method's published defaults and loss weights.
        varies: what differs between images.
        pipeline: a package of vitprune that exports, runs and validates bundles of the method in place of the code for a single
            pruned model (see `vitprune.pipelines`); "" for all methods that drop tokens.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    kind: ClassVar[str]
    params: ClassVar[type[MethodParams]]
    needs_cls: ClassVar[bool] = True
    training: ClassVar[str] = "none"
    train: ClassVar[type[TrainKeys]] = TrainKeys
    varies: ClassVar[str] = "tokens per image and site"
    pipeline: ClassVar[str] = ""

    @abstractmethod
    def sites(self, params: Any, geometry: Geometry) -> list[Site]:
        """Prune sites for a model; raises RecipeError VP1xx where the parameters do not fit it."""

    @abstractmethod
    def block_tokens(self, sites: Sequence[Site], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """Token counts of every block for the cost model, given the (mean) number of patches kept at each site."""

    def check_stages(self, params: MethodParams, geometry: Geometry) -> None:
        """Raise RecipeError VP110 when a stage lies beyond the model's depth."""
        beyond = [stage for stage in params.stages if stage >= geometry.depth]
        if beyond:
            raise RecipeError(
                110,
                f"stage {beyond[0]} is beyond the model's depth",
                cause=f"the model has {geometry.depth} blocks, numbered 0 to {geometry.depth - 1}; prune.stages is {params.stages}",
                next_step=f"--set 'prune.stages={[stage for stage in params.stages if stage < geometry.depth]}'",
            )


def per_stage(value: T | Sequence[T], stages: Sequence[int], key: str) -> list[T]:
    """Spread a scalar over the stages, or check that a list has one entry per stage.

    Raises:
        RecipeError: VP111 on a wrong length.
    """
    if not isinstance(value, list | tuple):
        return [value] * len(stages)  # type: ignore[list-item]
    if len(value) != len(stages):
        raise RecipeError(
            111,
            f"prune.{key} has {len(value)} entries for {len(stages)} stages",
            cause=f"prune.stages is {list(stages)}; {key} takes one value for all or one per stage",
            next_step=f"give {len(stages)} values, or a single one",
        )
    return list(value)
