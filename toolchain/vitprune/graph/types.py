"""What a pass sees of a graph: tensors, nodes, the graph itself.

onnx-graphsurgeon has no annotations. These protocols name the part of it that passes use, and the makers below are the places where
its objects come to be, so that a type checker follows a tensor through a surgery.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import DTypeLike
from onnx_graphsurgeon.logger import G_LOGGER

G_LOGGER.severity = G_LOGGER.ERROR  # its warnings are about colours and names, and would land in users' terminals

Shape = Sequence["int | str"]
T = TypeVar("T")


class Tensor(Protocol):
    """A value between nodes, computed or constant.

    Attributes:
        name: unique in its graph. shape: numbers, names of open dimensions; None = unknown. dtype: NumPy's, None = unknown.
        inputs: the node that makes it, or none. outputs: the nodes that read it.
    """

    name: str
    shape: Shape | None
    dtype: DTypeLike | None
    inputs: list[Node]
    outputs: list[Node]


class Node(Protocol):
    """An operation.

    Attributes:
        op: operator type. name: of the node. domain: of the operator, None = ONNX's own. attrs: attributes by name.
        inputs, outputs: tensors in the operator's order; both may be assigned.
    """

    op: str
    name: str
    domain: str | None
    attrs: dict[str, Any]
    inputs: list[Tensor]
    outputs: list[Tensor]


class Graph(Protocol):
    """Nodes between input and output tensors; opset: of ONNX's own operators."""

    nodes: list[Node]
    inputs: list[Tensor]
    outputs: list[Tensor]
    opset: int

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""

    def toposort(self) -> Graph:
        """Sort the nodes in place: makers before readers."""

    def cleanup(self, *, remove_unused_graph_inputs: bool = False) -> Graph:
        """Take out, in place, what no output depends on."""


def variable(name: str, dtype: DTypeLike, shape: Shape | None = None) -> Tensor:
    """A tensor that a node or the caller will write."""
    made: Tensor = gs.Variable(name, dtype=dtype, shape=None if shape is None else list(shape))
    return made


def constant(name: str, values: np.ndarray) -> Tensor:
    """An initialiser."""
    made: Tensor = gs.Constant(name, values)
    return made


def absent() -> Tensor:
    """What stands for an optional input that is left out."""
    made: Tensor = gs.Variable.empty()
    return made


def node(
    op: str,
    name: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    *,
    domain: str | None = None,
    attrs: dict[str, Any] | None = None,
) -> Node:
    """An operation; it joins a graph by being appended to its nodes."""
    made: Node = gs.Node(op=op, name=name, attrs=attrs or {}, inputs=list(inputs), outputs=list(outputs), domain=domain)
    return made


def is_constant(tensor: Tensor) -> bool:
    """Whether a tensor is an initialiser."""
    return isinstance(tensor, gs.Constant)


def given(tensor: T | None) -> T:
    """A tensor that an earlier step has made; that it is missing is a defect of the surgery, not of the graph."""
    assert tensor is not None, "this tensor has not been made yet"
    return tensor


def dims(tensor: Tensor) -> Shape:
    """The shape of a tensor, () where it is unknown."""
    return tensor.shape or ()


def redirect(readers: Sequence[Node], old: Tensor, new: Tensor) -> None:
    """Let these nodes read `new` where they read `old`."""
    for reader in readers:
        reader.inputs = [new if tensor is old else tensor for tensor in reader.inputs]
