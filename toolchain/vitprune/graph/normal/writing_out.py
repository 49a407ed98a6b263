"""What the writers of foreign operators share: their type, optional inputs, and the refusal of what they do not understand."""

from __future__ import annotations

from collections.abc import Callable

from vitprune.errors import ExportError
from vitprune.graph import types
from vitprune.graph.emit import FLOAT, Emitter
from vitprune.graph.types import Graph, Node, Tensor, redirect

CONTRIB = "com.microsoft"
STANDARD = ("", "ai.onnx", None)
Writer = Callable[[Emitter, Node], "list[Tensor | None]"]


def refused(node: Node, why: str) -> ExportError:
    """VP334: which operator is not understood, and why."""
    foreign = node.domain not in STANDARD
    return ExportError(
        334,
        f"the graph holds operator {node.domain or 'ai.onnx'}:{node.op}",
        cause=f"node '{node.name or node.outputs[0].name}': {why}",
        next_step="give the graph as it was before it was optimised for a runtime, or optimised at the level 'basic'"
        if foreign
        else "export the dense model with opset 18 or 20, which have no such operator",
    )


def given(node: Node, position: int) -> Tensor | None:
    """An input, None where it is left out."""
    tensor = node.inputs[position] if len(node.inputs) > position else None
    return tensor if tensor is not None and (tensor.name or types.is_constant(tensor)) else None


def nothing_else(node: Node, known: int, attributes: set[str]) -> None:
    """Inputs beyond the first `known` and attributes that are not in the set change what is computed."""
    extra = next((number for number in range(known, len(node.inputs)) if given(node, number) is not None), None)
    if extra is not None:
        raise refused(node, f"its input {extra} (a mask, a past or a bias of positions) is not understood")
    unknown = sorted(name for name, value in node.attrs.items() if name not in attributes and value not in (0, 0.0, "", None))
    if unknown:
        raise refused(node, f"its attribute {unknown[0]} is not understood")


def replace(graph: Graph, node: Node, write: Writer, emit: Emitter) -> None:
    """Put what a writer makes of a node in its place.

    Raises:
        ExportError: VP334 an output that the writer does not make is read.
    """
    results, before = write(emit, node), list(node.outputs)
    node.outputs = []
    for old, new in zip(before, [*results, *[None] * len(before)], strict=False):
        leaves = any(old is output for output in graph.outputs)
        if new is None and (leaves or old.outputs):
            raise refused(node, "an output that only training needs is read")
        if new is not None:
            redirect(list(old.outputs), old, new)
            if leaves:
                graph.nodes.append(types.node("Identity", f"{emit.prefix}/named", [new], [old]))


def over_root(emit: Emitter, x: Tensor, epsilon: float) -> Tensor:
    """X divided by the root of its mean square over the last axis."""
    square = emit.op("Mul", [x, x], "square")
    mean = emit.reduce("ReduceMean", square, -1, "mean_square", keepdims=1)
    root = emit.op("Sqrt", [emit.op("Add", [mean, emit.constant(epsilon, FLOAT)], "plus_epsilon")], "root")
    return emit.op("Div", [x, root], "normed")


def rms(emit: Emitter, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm over the last axis."""
    return emit.op("Mul", [over_root(emit, x, epsilon), weight], "norm")
