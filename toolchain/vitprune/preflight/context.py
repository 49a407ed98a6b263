"""What rules look at."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vitprune.backends._engines import BuiltEngine, list_engines, state
from vitprune.backends._tensorrt.support import engine_mismatch
from vitprune.preflight.findings import Verdict
from vitprune.support.gpus import Gpu
from vitprune.support.onnx_file import read_model
from vitprune.targets import Choice

if TYPE_CHECKING:
    import onnx

    from vitprune.bundle import Bundle

NVIDIA = ("tensorrt", "tensorrt_rtx")


@dataclass(frozen=True)
class Context:
    """A bundle and a target.

    bundle: opened. choice: target, release and module. batch: (min, opt, max). architecture: compute capability stated by the user,
    "" when not. gpus: of this machine. machine: processor of this machine. elsewhere: an engine is to be built on another machine.
    """

    bundle: Bundle
    choice: Choice
    batch: tuple[int, int, int]
    architecture: str
    gpus: list[Gpu]
    machine: str
    elsewhere: bool = False

    @property
    def backend(self) -> str:
        """Name of the target's backend."""
        return self.choice.target.backend

    @cached_property
    def model(self) -> onnx.ModelProto:
        """model.onnx."""
        return read_model(self.bundle.model_path)

    @cached_property
    def engines(self) -> dict[str, BuiltEngine]:
        """Engines of the bundle that are whole and were built from its present model.onnx."""
        digest, whole = self.bundle.manifest.files.get("model.onnx"), lambda name: not state(self.bundle, name)
        built = list_engines(self.bundle.path)
        return {name: one for name, one in built.items() if one.document.get("model_sha256") == digest and whole(name)}

    @cached_property
    def operators(self) -> Counter[str]:
        """How often each standard operator stands in the graph and in the bodies of its functions."""
        return Counter(node.op_type for node in self.nodes if node.domain in ("", "ai.onnx"))

    @cached_property
    def nodes(self) -> list[onnx.NodeProto]:
        """All nodes: of the graph, of subgraphs, of function bodies."""
        pending = [*self.model.graph.node, *(node for body in self.model.functions for node in body.node)]
        found = []
        while pending:
            node = pending.pop()
            found.append(node)
            pending += [inner for attribute in node.attribute for inner in attribute.g.node]
        return found

    @property
    def own_engine(self) -> BuiltEngine | None:
        """An engine of this very target, built from this model by the runtime version that was asked about."""
        engine = self.engines.get(self.choice.target.name)
        version = self.choice.runtime_version
        if engine is None or self.backend != "tensorrt" or version is None:
            return engine
        return None if engine_mismatch(str(engine.facts.get("tensorrt", "")), str(version), version_compatible=False) else engine

    @property
    def accepted(self) -> Verdict:
        """Verdict of a rule on the graph that holds: verified when this target's builder took the graph, else likely."""
        return Verdict.VERIFIED if self.own_engine is not None else Verdict.LIKELY

    @cached_property
    def validation(self) -> dict[str, Any]:
        """The bundle's last validation, {} when there is none."""
        return self._report("validate.json")

    @cached_property
    def export(self) -> dict[str, Any]:
        """Notes of the export, {} when there are none."""
        return self._report("export.json")

    def _report(self, name: str) -> dict[str, Any]:
        try:
            document = json.loads((self.bundle.path / "reports" / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}
