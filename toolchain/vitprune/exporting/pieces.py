"""Parts of a dense graph that ONNX Runtime runs as they are, for the reference that is taken from a graph (`exporting.graph_vit`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_graphsurgeon as gs
import torch
from torch import Tensor

from vitprune.backends.onnxruntime import make_session
from vitprune.graph import held
from vitprune.graph.sorting import toposort
from vitprune.support.onnx_weights import Spill


class Parts:
    """A graph with a fixed batch of which parts are cut out; each costs as much as it has nodes.

    Args:
        graph: with shapes. spill: as for `graph.reading.Source`.
    """

    def __init__(self, graph: gs.Graph, spill: Spill | None = None) -> None:
        toposort(graph)
        self.spill = spill
        self.tensors = graph.tensors()
        self._versions = {"opset": graph.opset, "import_domains": graph.import_domains, "ir_version": graph.ir_version}
        self._place = {id(node): place for place, node in enumerate(graph.nodes)}

    def between(self, inputs: Sequence[str], outputs: Sequence[str]) -> gs.Graph:
        """What computes some tensors from others; its nodes are the graph's own."""
        nodes: dict[int, Any] = {}
        frontier, known = [self.tensors[name] for name in outputs], set(inputs)
        while frontier:
            tensor = frontier.pop()
            for node in () if tensor.name in known else tensor.inputs:
                if self._place[id(node)] not in nodes:
                    nodes[self._place[id(node)]] = node
                    frontier.extend(node.inputs)
        ordered = [nodes[place] for place in sorted(nodes)]
        ends = [[self.tensors[name] for name in names] for names in (inputs, outputs)]
        return gs.Graph(nodes=ordered, inputs=ends[0], outputs=ends[1], **self._versions)


class Piece:
    """A part of a graph with a fixed batch, as a function of float32 tensors [B,...] of any batch."""

    def __init__(self, parts: Parts, inputs: Sequence[str], *outputs: str) -> None:
        self.inputs = list(inputs)
        self.batch = int(parts.tensors[inputs[0]].shape[0])
        self.session = make_session(held.rebuilt(parts.between(inputs, outputs), parts.spill), spin=False)

    def __call__(self, *values: Tensor) -> Tensor:
        """The one output; see `every`."""
        return self.every(*values)[0]

    def every(self, *values: Tensor) -> list[Tensor]:
        """Run in pieces of the graph's batch; the last one is filled up with copies of the last image."""
        parts = []
        for start in range(0, len(values[0]), self.batch):
            fed = [value[start : start + self.batch] for value in values]
            count = len(fed[0])
            fed = [torch.cat([value, value[-1:].expand(self.batch - count, *value.shape[1:])]) for value in fed]
            feeds = {name: value.detach().numpy() for name, value in zip(self.inputs, fed, strict=True)}
            parts.append([torch.from_numpy(found[:count]) for found in self.session.run(None, feeds)])
        return [torch.cat(pieces) for pieces in zip(*parts, strict=True)]
