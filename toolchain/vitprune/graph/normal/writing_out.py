"""What the writers of foreign operators share: their type, optional inputs, and the refusal of what they do not understand."""

from __future__ import annotations

from collections.abc import Callable

from vitprune.errors import ExportError
from vitprune.graph import types
from vitprune.graph.emit import Emitter
from vitprune.graph.types import Node, Tensor

CONTRIB = "com.microsoft"
Writer = Callable[[Emitter, Node], "list[Tensor | None]"]


def refused(node: Node, why: str) -> ExportError:
    """VP334: which operator is not understood, and why."""
    return ExportError(
        334,
        f"the graph holds operator {node.domain or 'ai.onnx'}:{node.op}",
        cause=f"node '{node.name or node.outputs[0].name}': {why}",
        next_step="give the graph as it was before it was optimised for a runtime, or optimised at the level 'basic'",
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
