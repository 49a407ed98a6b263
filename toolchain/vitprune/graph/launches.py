"""How many kernels a graph starts, block by block: matrix products, attention, and everything else ("glue").

Counted on the graph as it is carried out: attention, GELU and linear maps are fused first, as `graph.lowering.onnxruntime` does it for ONNX
Runtime and as NVIDIA's builders do it for their engines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import onnx

from vitprune.graph.lowering.onnxruntime import specialise
from vitprune.graph.lowering.plugin_sites import with_plugin_sites
from vitprune.ops.sites import KEY_BIAS_ATTENTION, PLUGIN_SITES, PRUNE_SITE
from vitprune.ops.token_sample import DOMAIN, NAME

Sites = Literal["nodes", "sampling", "one operator"]
PRODUCTS = {"Gemm", "MatMul", "Conv", "FusedMatMul"}
ATTENTION = {"MultiHeadAttention", "Attention", "PackedAttention", KEY_BIAS_ATTENTION}
VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
# Values by element: a builder computes them in the kernel that makes what they read.
BY_ELEMENT = {
    "Abs", "Add", "And", "Cast", "Clip", "DequantizeLinear", "Div", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "QuantizeLinear", "Reciprocal", "Relu", "Round",
    "Sigmoid", "Sqrt", "Sub", "Tanh", "Where",
}  # fmt: skip
_OF_BLOCK = re.compile(r"vitprune/block(\d+)/")


@dataclass(frozen=True)
class Launches:
    """Kernels started: matrix products (linear maps, convolutions), fused attention, everything else."""

    products: int = 0
    attention: int = 0
    glue: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.products + self.attention + self.glue

    def __add__(self, other: Launches) -> Launches:
        return Launches(self.products + other.products, self.attention + other.attention, self.glue + other.glue)


def executed(model: onnx.ModelProto, sites: Sites) -> onnx.ModelProto:
    """The graph with attention, GELU and linear maps fused.

    Args:
        model: a pruned or dense, canonical model written by vitprune; not changed.
        sites: what a runtime has for a site: "nodes" alone; an operator for its "sampling" (TensorRT's plugin); or "one operator" for all of it.
    """
    if sites == "sampling":
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
        kept = [body for body in bare.functions if body.name != NAME]
        del bare.functions[:]
        bare.functions.extend(kept)
        model = bare
    return specialise(model, keep_outputs=True, native=sites == "one operator")[0]


def with_plugins(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The graph as TensorRT gets it with `--sites plugin`, fused like the others, and how many sites are a plugin node in it.

    Args:
        model: a pruned model written by vitprune; not changed.
    """
    lowered, made = with_plugin_sites(model)
    return executed(lowered, "sampling"), made


def by_block(graph: onnx.ModelProto, depth: int, fused: bool) -> list[Launches]:
    """Launches of a graph of `executed`: before the blocks, of every block; norm and head behind them count with the last one.

    Args:
        graph: of `executed`.
        depth: number of blocks.
        fused: a builder makes the kernels: values by element join the kernel that makes what they read, and views of memory cost nothing.
            Else every node is one that the runtime starts.

    Raises:
        ValueError: not every block has an attention that was found; what one has instead cannot be counted.
    """
    nodes = [node for node in graph.graph.node if not fused or node.op_type not in VIEWS]
    host = _from_shapes(graph)
    places = _places(graph)
    counted = [Launches() for _ in range(depth + 1)]
    made = {name for node in nodes if _launched(node, host, set(), False) for name in node.output}
    for node in nodes:
        if _launched(node, host, made, fused):
            counted[min(places[node.output[0]], depth - 1) + 1] += _one(node, fused)
    without = [number for number, found in enumerate(counted[1:]) if not found.attention]
    if without:
        raise ValueError(f"block {without[0]} has no attention that a runtime would fuse")
    return counted


def _launched(node: onnx.NodeProto, host: set[str], made: set[str], fused: bool) -> bool:
    """Whether a node is a kernel of its own; `host`: tensors that are known from shapes alone, `made`: those that some kernel makes."""
    if node.op_type == "Constant" or all(name in host for name in node.output if name):
        return False
    return not (fused and node.op_type in BY_ELEMENT and any(name in made for name in node.input))


def _one(node: onnx.NodeProto, built: bool) -> Launches:
    if built and node.domain == DOMAIN and node.op_type in PLUGIN_SITES:  # two launches (plugins/src/cuda)
        return Launches(glue=2 + _clears(node))
    if node.op_type in PRODUCTS:
        return Launches(products=1)
    return Launches(attention=1) if node.op_type in ATTENTION else Launches(glue=1)


def _clears(node: onnx.NodeProto) -> bool:
    """Whether a plugin clears some memory before its kernels: PruneSite does not where the score is given."""
    form = next((attribute.s for attribute in node.attribute if attribute.name == "form"), b"")
    return node.op_type != PRUNE_SITE or form != b"given"


def _from_shapes(graph: onnx.ModelProto) -> set[str]:
    """Tensors that follow from shapes and constants: runtimes fold them or compute them on the host."""
    known = {tensor.name for tensor in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type == "Shape" or all(name in known for name in node.input if name):
            known.update(name for name in node.output if name)
    return known


def _places(graph: onnx.ModelProto) -> dict[str, int]:
    """Block of every computed tensor, -1 before the blocks.

    By the name of its node, else that of what it reads; a norm stands with the maps that alone read it.
    """
    placed: dict[str, int] = {}
    named: dict[str, int] = {}
    for node in graph.graph.node:
        found = _OF_BLOCK.match(node.name)
        number = int(found.group(1)) if found else max((placed.get(name, -1) for name in node.input), default=-1)
        for name in node.output:
            placed[name] = number
            if found or node.domain == DOMAIN:
                named[name] = number
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in reversed(graph.graph.node):
        after = [_read_in(one, named) for name in node.output for one in readers.get(name, [])]
        if node.output[0] not in named and after and min(after) > placed[node.output[0]]:
            placed.update(dict.fromkeys(node.output, min(after)))
            if node.op_type in VIEWS:
                named.update(dict.fromkeys(node.output, min(after)))
    return placed


def _read_in(node: onnx.NodeProto, named: Mapping[str, int]) -> int:
    """Block that a reader is named after, -1 without."""
    return named.get(node.output[0], -1)
