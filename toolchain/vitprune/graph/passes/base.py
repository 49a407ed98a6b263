"""Contract of a graph pass and the context passes share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import onnx

from vitprune.errors import ExportError
from vitprune.graph.anatomy.find import Anatomy
from vitprune.graph.emit import Emitter
from vitprune.graph.outlines import Outline
from vitprune.graph.ragged import Ragged
from vitprune.graph.sorting import toposort
from vitprune.graph.types import Graph, Shape, Tensor, given, redirect
from vitprune.methods.base import Method, Site
from vitprune.recipe import Recipe
from vitprune.support.onnx_weights import Spill


class Slots(NamedTuple):
    """Patch slots: valid bool [B,K], True on real ones; patch int64 [B,K], their original numbers."""

    valid: Tensor
    patch: Tensor


class Rows(NamedTuple):
    """Whose positions rows have: patch int64 [B,K], None while all patches are there; members float32 [B,K,P] where rows merge."""

    patch: Tensor | None
    members: Tensor | None


@dataclass
class Surgery:
    """A graph under rewriting.

    Attributes:
        graph: the dense graph, changed in place. anatomy: its blocks, by tensor name. recipe, method, sites: what to insert.
        valid: bool [B,K] tensor of real patch slots after the last site so far, None while all are. patch: int64 [B,K] original
        patch numbers, None while all are there; `slots` for passes behind the first site. bias: float32 [B,1,1,N] that hides pads as keys, None while there are none.
        front, front_bias: rows int64 and key bias float32 [B,prefix] of the prefix, made once. weight: float32 [B,K], how many patches
        each slot stands for, None = one each. kept: per site, the output tensor of kept patch numbers, None where a site is bypassed.
        groups: per block with a site of a method that merges, int64 [B,P]: for every patch the one that represents it.
        members: float32 [B,K,P], shares of the original patches in the rows that are there, where rows merge and positions are rotary.
        tables: of rotary positions, see `graph.turning`. rows_of, biases, numbers: of position biases, see `graph.biasing`.
        more_outputs: further outputs of the method, by name.
        functions: model-local functions to attach. outlines: what sites do as one operator.
        ragged: where tokens are born whose number differs between images (see `born`). notes: facts for the export report.
        spill: where new weights go, None = into the model.
    """

    graph: Graph
    anatomy: Anatomy
    recipe: Recipe
    method: Method
    sites: list[Site[Any]]
    valid: Tensor | None = None
    patch: Tensor | None = None
    bias: Tensor | None = None
    front: Tensor | None = None
    front_bias: Tensor | None = None
    weight: Tensor | None = None
    members: Tensor | None = None
    tables: dict[tuple[str, int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)
    rows_of: dict[str, Rows] = field(default_factory=dict)
    biases: dict[tuple[str, int, int, int, int], Tensor] = field(default_factory=dict)
    numbers: dict[int, Tensor] = field(default_factory=dict)
    kept: list[Tensor | None] = field(default_factory=list)
    groups: dict[int, Tensor] = field(default_factory=dict)
    more_outputs: dict[str, Tensor] = field(default_factory=dict)
    functions: dict[str, onnx.FunctionProto] = field(default_factory=dict)
    outlines: list[Outline] = field(default_factory=list)
    ragged: list[Ragged] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    spill: Spill | None = None

    def __post_init__(self) -> None:
        self.tensors = self.graph.tensors()
        self.nodes = {node.name: node for node in self.graph.nodes}
        self.emitter = Emitter(self.graph, "vitprune")

    @property
    def padded(self) -> bool:
        """Static capacities instead of data-dependent counts."""
        return self.recipe.graph.shapes == "padded"

    @property
    def single(self) -> bool:
        """Batch fixed at one image: in dynamic shapes no slot is ever a pad, unless a site may keep no patch at all."""
        empty = any(site.options.may_be_empty for site in self.sites)
        return self.recipe.graph.static_batch == 1 and not self.padded and not empty

    @property
    def slots(self) -> Slots:
        """`valid` and `patch` behind `graph.canonical.start`, which makes them."""
        return Slots(given(self.valid), given(self.patch))

    def born(self, keep: Tensor, *tokens: Tensor) -> None:
        """Note token rows [B,prefix+K,...] of which images may have different numbers; keep bool [B,K]: the patch rows that are no pads."""
        if not self.padded and not self.single:
            self.ragged += [Ragged(one.name, keep.name) for one in tokens]

    def rows_shape(self, block: int, patches: int | None) -> Shape:
        """Shape [B,M,C] of the rows that a site leaves, for whoever infers shapes behind it; patches: slots that stay, None = not constant."""
        batch = self.recipe.graph.static_batch
        tokens = f"tokens_block{block}" if patches is None else self.anatomy.prefix + patches
        return ["batch" if batch is None else batch, tokens, self.anatomy.width]

    def replace(self, old: Tensor, new: Tensor) -> None:
        """Let every reader of `old` read `new`."""
        redirect(list(old.outputs), old, new)
        self.graph.outputs = [new if tensor is old else tensor for tensor in self.graph.outputs]


class GraphPass(ABC):
    """One rewrite."""

    name: str

    def requires(self, surgery: Surgery) -> str:
        """Why the pass cannot run, or ""."""
        return ""

    @abstractmethod
    def apply(self, surgery: Surgery) -> bool:
        """Rewrite; returns whether anything changed."""

    def ensures(self, surgery: Surgery) -> str:
        """What the rewrite failed to establish, or ""."""
        return ""

    def run(self, surgery: Surgery) -> bool:
        """Check, apply, check.

        Raises:
            ExportError: VP323 when a condition does not hold.
        """
        self._insist("before", self.requires(surgery))
        changed = self.apply(surgery)
        if changed:  # sorting is a quarter of the surgery's time
            toposort(surgery.graph)
        self._insist("after", self.ensures(surgery))
        return changed

    def _insist(self, moment: str, problem: str) -> None:
        if problem:
            raise ExportError(
                323,
                f"pass {self.name}: {problem}",
                cause=f"condition {moment} the rewrite",
                next_step="report the dense ONNX file with this message",
            )


def run_all(passes: Sequence[GraphPass], surgery: Surgery) -> list[dict[str, str | bool]]:
    """Run passes in their order; for the report, the `name` of each and whether it `changed` anything.

    Raises:
        ExportError: VP323 when a condition of a pass does not hold.
    """
    return [{"name": step.name, "changed": step.run(surgery)} for step in passes]
