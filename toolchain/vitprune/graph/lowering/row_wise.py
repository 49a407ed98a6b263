"""Which nodes work on every row of [B,N,...] by itself, and what they look like when the rows lie behind each other in [T,...]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from vitprune.graph.anatomy.static import value_of
from vitprune.graph.emit import INT64, Emitter
from vitprune.graph.types import Node, Tensor, dims, is_constant

UNARY = {
    "Abs", "Cast", "Erf", "Exp", "Gelu", "Identity", "Neg", "Not", "QuickGelu", "Reciprocal", "Relu", "Sigmoid", "Sqrt", "Tanh",
}  # fmt: skip
PAIRED = {"Add", "Div", "Max", "Min", "Mul", "Pow", "Sub", "Greater", "Less", "Where"}
REDUCING = {"ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "ReduceMax", "ReduceMin"}
OUTER = 2  # axes that images and tokens take


@dataclass
class Change:
    """What makes a node work on packed rows.

    Attributes:
        rank: of its outputs, with both outer axes. attrs: attributes to set. constants: new values of inputs by number.
    """

    rank: int
    attrs: dict[str, Any] = field(default_factory=dict)
    constants: dict[int, tuple[np.ndarray, DTypeLike]] = field(default_factory=dict)

    def carry_out(self, node: Node, emit: Emitter) -> None:
        """Change the node."""
        node.attrs.update(self.attrs)
        for number, (values, dtype) in self.constants.items():
            node.inputs[number] = emit.constant(values, dtype)


def by_rows(node: Node, ranks: Sequence[int]) -> Change | None:
    """The change for a node, or None where rows are not known to be independent.

    Args:
        node: reads at least one tensor [B,N,...]; others may be constants, or tensors of the same rank.
        ranks: by input, the rank of those that are [B,N,...], else 0.
    """
    if node.op in UNARY and ranks[0]:
        return Change(ranks[0])
    if node.op in PAIRED:
        return _paired(node, ranks)
    if not ranks or not ranks[0] or any(ranks[1:]):
        return None
    rank = ranks[0]
    if rank <= OUTER and node.op in ("LayerNormalization", "Softmax", "MatMul"):
        return None  # the last axis is that of the tokens
    if node.op == "LayerNormalization" and node.attrs.get("axis", -1) in (-1, rank - 1) and len(node.outputs) == 1:
        return Change(rank, {"axis": -1})
    if node.op == "Softmax" and node.attrs.get("axis", -1) in (-1, rank - 1):
        return Change(rank, {"axis": -1})
    if node.op == "MatMul" and (weight := value_of(node.inputs[1])) is not None and weight.ndim == 2:
        return Change(rank)
    if node.op in REDUCING:
        return _reduced(node, rank)
    return SHAPING[node.op](node, rank) if node.op in SHAPING else None


def _paired(node: Node, ranks: Sequence[int]) -> Change | None:
    """Element by element: all rows of one rank, constants without outer axes, others with both."""
    rank = max(ranks)
    constants: dict[int, tuple[np.ndarray, DTypeLike]] = {}
    for number, (tensor, own) in enumerate(zip(node.inputs, ranks, strict=True)):
        values = value_of(tensor)
        if own not in (0, rank):
            return None
        if own:
            continue
        if values is None:
            if len(dims(tensor)) != rank:
                return None  # what it would be spread over is not known
            continue
        if values.ndim > rank or any(size != 1 for size in values.shape[: max(0, values.ndim - rank + OUTER)]):
            return None
        if values.ndim > rank - OUTER:
            constants[number] = (values.reshape(values.shape[values.ndim - rank + OUTER :]), values.dtype.type)
    return Change(rank, constants=constants)


def constant_axes(node: Node) -> list[int] | None:
    """The axes that a node names, as an attribute or a constant input."""
    if "axes" in node.attrs:
        return [int(one) for one in node.attrs["axes"]]
    place = {"Slice": 3}.get(node.op, 1)
    values = value_of(node.inputs[place]) if len(node.inputs) > place and node.inputs[place].name else None
    return None if values is None else [int(one) for one in values.reshape(-1)]


def _inner(axes: list[int] | None, rank: int) -> list[int] | None:
    """Axes counted from behind, None where one is an outer axis."""
    if axes is None:
        return None
    behind = [axis if axis < 0 else axis - rank for axis in axes]
    return behind if all(-(rank - OUTER) <= axis < 0 for axis in behind) else None


def _renamed(node: Node, place: int, axes: list[int], rank: int) -> Change:
    if "axes" in node.attrs:
        return Change(rank, {"axes": axes})
    return Change(rank, constants={place: (np.asarray(axes), INT64)})


def _reduced(node: Node, rank: int) -> Change | None:
    axes = _inner(constant_axes(node), rank)
    if axes is None:
        return None
    return _renamed(node, 1, axes, rank if node.attrs.get("keepdims", 1) else rank - len(axes))


def _slice(node: Node, rank: int) -> Change | None:
    axes = _inner(constant_axes(node), rank)
    return None if axes is None or not _fixed(node.inputs[1:]) else _renamed(node, 3, axes, rank)


def _fixed(tensors: Sequence[Tensor]) -> bool:
    return all(is_constant(tensor) for tensor in tensors if tensor.name)


def _squeeze(node: Node, rank: int) -> Change | None:
    axes = _inner(constant_axes(node), rank)
    return None if axes is None else _renamed(node, 1, axes, rank - len(axes))


def _unsqueeze(node: Node, rank: int) -> Change | None:
    axes = constant_axes(node)
    inner = None if axes is None else _inner(axes, rank + len(axes))
    return None if inner is None else _renamed(node, 1, inner, rank + len(inner))


def _reshape(node: Node, rank: int) -> Change | None:
    """[0, 0, ...]: both outer axes stay."""
    shape = value_of(node.inputs[1])
    if shape is None or node.attrs.get("allowzero", 0) or shape.ndim != 1 or len(shape) <= OUTER or list(shape[:OUTER]) != [0, 0]:
        return None
    if any(size == 0 for size in shape[OUTER:]):
        return None
    return Change(len(shape), constants={1: (np.asarray([0, *shape[OUTER:]]), INT64)})


def _split(node: Node, rank: int) -> Change | None:
    axes = _inner([int(node.attrs.get("axis", 0))], rank)
    return None if axes is None or not _fixed(node.inputs[1:]) else Change(rank, {"axis": axes[0]})


SHAPING: dict[str, Callable[[Node, int], Change | None]] = {
    "Slice": _slice, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Reshape": _reshape, "Split": _split,
}  # fmt: skip
