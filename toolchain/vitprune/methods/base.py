"""What every method declares: its parameters, its prune sites and what it needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from typing_extensions import Self, TypeVar

from vitprune.errors import RecipeError
from vitprune.methods.train_keys import TrainKeys

if TYPE_CHECKING:
    from vitprune.graph.passes.base import GraphPass
    from vitprune.methods.knob import Knob
    from vitprune.methods.pipeline import Pipeline
    from vitprune.training.behaviour import Behaviour
    from vitprune.vit.reference_method import ReferenceMethod

T = TypeVar("T")
K = TypeVar("K", bound=BaseModel)


@dataclass(frozen=True)
class Geometry:
    """Sizes of a dense ViT: blocks, patches P, prefix tokens (CLS, registers), width C, heads H, MLP hidden width.

    A gated MLP has the hidden width of the plain one with as many weights.
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

    entering: rows of keys and values. queries: rows of queries, attention and projection. mlp: rows of the MLP. selection: MACs
    that the method spends on its decision, where it says so.
    """

    entering: float
    queries: float
    mlp: float
    selection: float = 0.0


@dataclass(frozen=True)
class SiteOptions:
    """Settings of a site that belong to its method; methods derive their own from this.

    bypass: the site is listed, but nothing leaves there. may_be_empty: an image may keep no patch at all.
    """

    bypass: bool = False
    may_be_empty: bool = False


@dataclass(frozen=True)
class SamplingOptions(SiteOptions):
    """Settings of a site that selects with a TokenSample node (contract: `vitprune.ops.token_sample`); capacity 0 = the bound itself."""

    mode: str = "inverse_transform"
    num_samples: int = 1
    threshold: float = 0.0
    capacity: int = 0
    expected: int = 0


O_co = TypeVar("O_co", bound=SiteOptions, covariant=True, default=SiteOptions)


@dataclass(frozen=True)
class Site(Generic[O_co]):
    """One prune site, ready to be carried out by the method's reference and by its surgery.

    Attributes:
        block: 0-based block in (or before) which tokens leave.
        patches: largest number of patch tokens that can enter the site.
        limit: largest number of patch tokens that can leave it (static bound, capacity applied).
        options: the method's own settings (score form, grid, number of samples, ...).
    """

    block: int
    patches: int
    limit: int
    options: O_co = field(default_factory=SiteOptions)  # type: ignore[assignment]


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
    """A method: what recipes say of it, where it prunes, what that costs, and where its implementations are.

    The implementations are attributes that import on first use, so that describing a method needs neither torch nor onnx.

    Class attributes:
        name: as in recipes. summary, paper: one line each.
        params: pydantic model of its recipe keys.
        needs_cls: scores come from the CLS row, unless the recipe's key `score` names others. training_need: whether results make sense without training.
        train: pydantic model of the recipe's `train:` section, with the method's published defaults and loss weights.
        varies: what differs between images. hidden_decisions: it decides more than which patches stay (which ones join which). follows:
            its reference can compute with kept lists from elsewhere (`TokenState.follow`). places: what is known of a patch whose token is gone:
            "map" = which row stands for it (methods that merge), "last" = its row before it was dropped, "" = neither. families: of graphs that its surgery knows (`vitprune.graph.families`).
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    params: ClassVar[type[MethodParams]]
    needs_cls: ClassVar[bool] = True
    training_need: ClassVar[Literal["none", "optional", "required"]] = "none"
    train: ClassVar[type[TrainKeys]] = TrainKeys
    varies: ClassVar[str] = "tokens per image and site"
    hidden_decisions: ClassVar[bool] = False
    follows: ClassVar[bool] = False
    places: ClassVar[Literal["map", "last", ""]] = ""
    families: ClassVar[tuple[str, ...]] = ("ViT",)

    @abstractmethod
    def sites(self, params: Any, geometry: Geometry) -> list[Site[Any]]:
        """Prune sites for a model; raises RecipeError VP1xx where the parameters do not fit it."""

    @abstractmethod
    def block_tokens(self, sites: Sequence[Site[Any]], geometry: Geometry, kept: Sequence[float]) -> list[BlockTokens]:
        """Token counts of every block for the cost model, given the (mean) number of patches kept at each site."""

    @property
    def reference(self) -> type[ReferenceMethod]:
        """What the method does to the blocks of a ViT in PyTorch.

        Raises:
            RecipeError: VP145 for a method that runs several models (it has a `pipeline` of its own).
        """
        raise self._of_several_models("no reference for one model")

    @property
    def surgery(self) -> type[GraphPass]:
        """What the method does to the graph of a dense ViT."""
        raise self._of_several_models("no surgery for one graph")

    def surgery_for(self, family: str) -> type[GraphPass]:
        """The surgery on graphs of one of `families`; methods that know several override this."""
        return self.surgery

    @property
    def knob(self) -> Knob | None:
        """The one setting that moves the method's cost, or None where there is no such setting."""
        return None

    @property
    def training(self) -> type[Behaviour] | None:
        """What is trained; None = the reference in training mode."""
        return None

    @property
    def pipeline(self) -> Pipeline | None:
        """How bundles of the method are exported, run and validated; None = as those of a single pruned model."""
        return None

    def scores_by_cls(self, params: Any) -> bool:
        """Whether a recipe's scores come from the CLS row: as the method has it, unless a key `score` names others."""
        return self.needs_cls and getattr(params, "score", "cls") == "cls"

    def score_scale(self, params: Any, geometry: Geometry) -> float:
        """Size of what the scores that decide are made of, which their rounding errors are relative to; 1 for shares and cosines."""
        return 1.0

    def loses(self, sites: Sequence[Site[Any]]) -> bool:
        """Whether a method that merges may also lose rows, that no other row stands for, to a capacity."""
        return False

    def padded_advice(self, params: Any) -> str:
        """What padded shapes lose with these keys, and the keys that lose less; "" where there is nothing to say."""
        return ""

    def _of_several_models(self, message: str) -> RecipeError:
        return RecipeError(
            145, f"{self.name} has {message}", cause="it runs several models per image",
            next_step="go through vitprune.reference, vitprune.export or the command line",
        )  # fmt: skip

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


def keys_of(keys: BaseModel, kind: type[K]) -> K:
    """A recipe's section as what it is: `keys_of(recipe.prune, AtsParams)` has the keys of ATS, and a type checker knows.

    Raises:
        TypeError: the section belongs to another method.
    """
    if not isinstance(keys, kind):
        expected, found = (f"{one.__module__}.{one.__qualname__}" for one in (kind, type(keys)))
        raise TypeError(f"{expected} expected, these are of {found}")
    return keys


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
