"""Contract of a graph pass and the context passes share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx_graphsurgeon as gs

from vitprune.errors import ExportError
from vitprune.graph.anatomy.find import Anatomy
from vitprune.graph.emit import Emitter
from vitprune.methods.base import Method, Site
from vitprune.recipe import Recipe


@dataclass
class Surgery:
    """A graph under rewriting.

    Attributes:
        graph: the dense graph, changed in place. anatomy: its blocks, by tensor name. recipe, method, sites: what to insert.
        valid: bool [B,K] tensor of real patch slots after the last site so far, None while all are. patch: int64 [B,K] original
        patch numbers, None while all are there. bias: float32 [B,1,1,N] that hides pads as keys, None while there are none.
        weight: float32 [B,K], how many patches each slot stands for, None = one each. kept: per site, the output tensor of kept
        patch numbers. more_outputs: further outputs of the method, by name.
        functions: model-local functions to attach. notes: facts for the export report.
    """

    graph: gs.Graph
    anatomy: Anatomy
    recipe: Recipe
    method: Method
    sites: list[Site[Any]]
    valid: Any = None
    patch: Any = None
    bias: Any = None
    front: Any = None
    front_bias: Any = None
    weight: Any = None
    kept: list[Any] = field(default_factory=list)
    more_outputs: dict[str, Any] = field(default_factory=dict)
    functions: dict[str, onnx.FunctionProto] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

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

    def replace(self, old: Any, new: Any) -> None:
        """Let every reader of `old` read `new`."""
        for node in list(old.outputs):
            node.inputs = [new if tensor is old else tensor for tensor in node.inputs]
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
        for moment, check in (("before", self.requires), ("after", self.ensures)):
            if moment == "after":
                changed = self.apply(surgery)
                surgery.graph.toposort()
            if problem := check(surgery):
                raise ExportError(
                    323,
                    f"pass {self.name}: {problem}",
                    cause=f"condition {moment} the rewrite",
                    next_step="report the dense ONNX file with this message",
                )
        return changed
