"""Linear maps written over [B*N,C] work on [B,N,C] again.

nn.Linear becomes a Gemm between two Reshapes in graphs of onnxsim, onnxslim and ONNX Runtime, and behind nn.MultiheadAttention. Those
Reshapes bake batch and token count in, and rows that belong to different images stand in one axis. Everything between a Reshape that
joins the first two axes and one that parts them again is written for the axes as they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from vitprune.graph import held
from vitprune.graph.anatomy.readers import ELEMENTWISE, ROW_NORMS
from vitprune.graph.anatomy.static import static_copy, value_of
from vitprune.graph.emit import Emitter
from vitprune.graph.sorting import toposort
from vitprune.graph.types import Graph, Node, Tensor, redirect

MOVING = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class _Joined:
    """A tensor [a*b,c] whose rows are those of [a,b,c]."""

    outer: tuple[int, int]
    columns: int


def unflatten(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same graph with linear maps on [B,N,C], and how many Reshapes that part rows became superfluous.

    Raises:
        ExportError: VP320 when a dimension other than the batch is open.
    """
    if not _may_join(model):
        return model, 0
    known = _known(model)
    graph = held.imported(model)
    toposort(graph)
    joined, members = _joined(graph, known)
    useful = _leading_to_exits(joined, members, known.shapes)
    if not useful:
        return model, 0
    exits = _Writer(graph, joined, known, useful).write(members)
    graph.cleanup(remove_unused_graph_inputs=False)
    toposort(graph)
    made = held.rebuilt(graph)
    made.ir_version = model.ir_version
    del made.graph.value_info[:]
    return made, exits


def _may_join(model: onnx.ModelProto) -> bool:
    """Whether rows may be joined anywhere; most graphs show at a glance that they are not."""
    makers = {output: node for node in model.graph.node for output in node.output}
    sizes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    sizes |= {node.output[0]: list(a.t.dims) for node in model.graph.node if node.op_type == "Constant" for a in node.attribute}
    above = [makers.get(node.input[0]) for node in model.graph.node if node.op_type == "Gemm" and node.input]
    if any(node is not None and node.op_type in MOVING for node in above):
        return True
    return any(node.op_type == "Reshape" and len(node.input) > 1 and sizes.get(node.input[1]) == [2] for node in model.graph.node)


@dataclass(frozen=True)
class _Known:
    """Sizes of all tensors whose sizes are known, and values of those that follow from weights alone, by name."""

    shapes: dict[str, Sizes]
    values: dict[str, np.ndarray]

    def value(self, tensor: Tensor) -> np.ndarray | None:
        """The constant behind a tensor, also through operators that exporters put between."""
        own = value_of(tensor)
        return self.values.get(tensor.name) if own is None else own


def _known(model: onnx.ModelProto) -> _Known:
    """With a batch of two where it is open: then it is told from other axes of one."""
    shapes, values = {}, {}
    for name, tensor in static_copy(model, 2).tensors().items():
        shape = tensor.shape
        if shape is not None and all(isinstance(size, int) for size in shape):
            shapes[name] = tuple(int(size) for size in shape)
        if (value := value_of(tensor)) is not None:
            values[name] = value
    return _Known(shapes, values)


def _joins(node: Node, shapes: dict[str, Sizes]) -> _Joined | None:
    """Whether a node joins the first two axes, and all others, of what it reads."""
    if node.op not in MOVING or not node.inputs:
        return None
    before, after = shapes.get(node.inputs[0].name), shapes.get(node.outputs[0].name)
    if before is None or after is None or len(after) != 2 or len(before) < 3:
        return None
    fits = after[0] == before[0] * before[1] and after[1] == int(np.prod(before[2:]))
    return _Joined((before[0], before[1]), after[1]) if fits else None


def _parts(node: Node, tensor: Tensor, rows: _Joined, shapes: dict[str, Sizes]) -> Sizes | None:
    """The shape a node gives to joined rows when it parts them as they were, else None."""
    after = shapes.get(node.outputs[0].name)
    if node.op not in MOVING or node.inputs[0] is not tensor or after is None or len(after) < 3:
        return None
    return after if after[:2] == rows.outer and int(np.prod(after[2:])) == rows.columns else None


def _joined(graph: Graph, known: _Known) -> tuple[dict[str, _Joined], list[Node]]:
    """Tensors of joined rows by name, and the nodes that make them, in the order of the graph."""
    joined: dict[str, _Joined] = {}
    members = []
    for node in graph.nodes:
        rows = _joins(node, known.shapes) or _follows(node, joined, known)
        if rows is not None:
            joined |= {output.name: _Joined(rows.outer, known.shapes[output.name][-1]) for output in node.outputs}
            members.append(node)
    return joined, members


def _follows(node: Node, joined: dict[str, _Joined], known: _Known) -> _Joined | None:
    """Whether a node works row by row on joined rows."""
    live = [tensor for tensor in node.inputs if known.value(tensor) is None]
    if not live or any(tensor.name not in joined for tensor in live):
        return None
    outers = {joined[tensor.name].outer for tensor in live}
    sizes = [known.shapes.get(output.name) for output in node.outputs]
    rows = joined[live[0].name]
    if len(outers) > 1 or any(size is None or len(size) != 2 or size[0] != rows.outer[0] * rows.outer[1] for size in sizes):
        return None
    constants = [value for tensor in node.inputs if (value := known.value(tensor)) is not None]
    if node.op == "Gemm":
        plain = (
            live[0] is node.inputs[0] and len(live) == 1 and not node.attrs.get("transA", 0) and constants[0].dtype == np.float32
        )
        return rows if plain and all(value.shape[0] == 1 for value in constants[1:] if value.ndim == 2) else None
    if node.op == "MatMul":
        return rows if live[0] is node.inputs[0] and constants and constants[0].ndim == 2 else None
    if node.op in ELEMENTWISE:
        return rows if all(value.ndim < 2 or value.shape[-2] == 1 for value in constants) else None
    if node.op in ROW_NORMS:
        return rows if node.attrs.get("axis", -1) in (-1, 1) else None
    if node.op == "Split":
        return rows if node.attrs.get("axis", 0) in (-1, 1) else None
    if node.op == "Slice" and len(constants) >= 3 and constants[2].size == 1:
        return rows if int(constants[2].reshape(-1)[0]) in (-1, 1) else None
    return None


def _leading_to_exits(joined: dict[str, _Joined], members: list[Node], shapes: dict[str, Sizes]) -> set[str]:
    """Names of joined tensors from which, or from whose kin, rows are parted again."""
    useful: set[str] = set()
    inside = {id(node) for node in members}
    for node in reversed(members):
        for output in node.outputs:
            parted = any(_parts(reader, output, joined[output.name], shapes) for reader in output.outputs)
            onwards = any(id(r) in inside and any(o.name in useful for o in r.outputs) for r in output.outputs)
            if parted or onwards:
                useful.update(one.name for one in node.outputs)
    for node in members:  # what reads a useful tensor works on three axes, too
        if any(tensor.name in useful for tensor in node.inputs):
            useful.update(output.name for output in node.outputs)
    for node in reversed(members):
        if any(output.name in useful for output in node.outputs):
            useful.update(tensor.name for tensor in node.inputs if tensor.name in joined)
    return useful


class _Writer:
    """Writes members on three axes."""

    def __init__(self, graph: Graph, joined: dict[str, _Joined], known: _Known, useful: set[str]) -> None:
        self.graph, self.joined, self.known, self.shapes, self.useful = graph, joined, known, known.shapes, useful
        self.parted: dict[str, Tensor] = {}
        self.emit = Emitter(graph, "rows")

    def write(self, members: list[Node]) -> int:
        """Returns the number of nodes that part rows and are not needed any more."""
        for node in members:
            if node.outputs[0].name in self.useful:
                self._member(node)
        exits = 0
        for node in members:
            for output in list(node.outputs):
                if output.name in self.parted:
                    exits += self._readers(node, output)
        return exits

    def _member(self, node: Node) -> None:
        emit = self.emit.child(node.name)
        entry = node.inputs[0].name not in self.parted and _joins(node, self.shapes)
        if entry:
            source = node.inputs[0]
            deep = len(self.shapes[source.name]) > 3
            shape = emit.constant([0, 0, entry.columns])
            self.parted[node.outputs[0].name] = emit.op("Reshape", [source, shape], "joined") if deep else source
            return
        inputs = [self.parted.get(tensor.name, tensor) for tensor in node.inputs]
        attrs: dict[str, Any] = dict(node.attrs)
        if node.op == "Gemm":
            self.parted[node.outputs[0].name] = _linear(emit, inputs[0], node, self.known)
            return
        if node.op in ROW_NORMS or node.op == "Split":
            attrs["axis"] = -1
        if node.op == "Slice":
            inputs[3] = emit.constant([-1])
        kinds: list[tuple[Any, None]] = [(output.dtype, None) for output in node.outputs]
        made = emit.ops(node.op, inputs, "rows", kinds, **attrs)
        self.parted |= {output.name: new for output, new in zip(node.outputs, made, strict=True)}

    def _readers(self, node: Node, output: Tensor) -> int:
        """Whoever still reads a tensor of joined rows gets them parted, or joined anew."""
        new, rows, exits = self.parted[output.name], self.joined[output.name], 0
        foreign = []
        for reader in list(output.outputs):
            if reader.outputs and reader.outputs[0].name in self.parted:
                continue
            shape = _parts(reader, output, rows, self.shapes)
            if shape is None:
                foreign.append(reader)
                continue
            exits += 1
            if len(shape) > 3 or any(reader.outputs[0] is one for one in self.graph.outputs):
                emit = self.emit.child(reader.name)
                reader.inputs = [new, emit.constant([0, 0, *shape[2:]])]
                reader.op, reader.attrs = "Reshape", {}
            else:
                redirect(list(reader.outputs[0].outputs), reader.outputs[0], new)
        if foreign or any(one is output for one in self.graph.outputs):
            emit = self.emit.child(output.name)
            again = emit.op("Reshape", [new, emit.constant([-1, rows.columns])], "joined")
            redirect(foreign, output, again)
            if any(one is output for one in self.graph.outputs):
                node.outputs = [one for one in node.outputs if one is not output]
                again.inputs[0].outputs = [output]
        return exits


def _linear(emit: Emitter, x: Tensor, node: Node, known: _Known) -> Tensor:
    """Gemm on three axes: alpha * x @ W + beta * b."""
    weight = np.asarray(known.value(node.inputs[1]))
    weight = (weight.T if node.attrs.get("transB", 0) else weight) * np.float32(node.attrs.get("alpha", 1.0))
    bias = known.value(node.inputs[2]) if len(node.inputs) > 2 else None
    if bias is not None:
        bias = np.broadcast_to(bias.reshape(-1), (weight.shape[1],)) * np.float32(node.attrs.get("beta", 1.0))
    return emit.linear(x, weight, bias, "linear")
