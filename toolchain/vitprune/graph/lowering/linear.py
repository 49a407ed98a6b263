"""Linear maps as Gemm over rows [B*N,C], which adds the bias on the way; ONNX Runtime does this only where shapes are constant.

Where a shape is needed to go back to [B,N,C] it is a constant, or the site that set the number of tokens hands it over; only behind
sites that cannot is it read off the rows.
"""

from __future__ import annotations

import numpy as np

from vitprune.graph import types
from vitprune.graph.anatomy.static import value_of
from vitprune.graph.lowering.pruning import site_above
from vitprune.graph.types import Graph, Node, Tensor, dims


def fuse_linear(graph: Graph, handed: dict[int, Tensor]) -> int:
    """MatMul of [B,N,C] or [B,C] with weights, and the bias -> Gemm; returns how many.

    Args:
        graph: changed in place. handed: shapes [B,N,C] int64 [3] of what native sites write, by the id of their nodes.
    """
    shapes = _Shapes(graph, handed)
    made = 0
    for matmul in [node for node in graph.nodes if node.op == "MatMul"]:
        bias = bias_of(matmul)
        x = matmul.inputs[0]
        if bias is None or len(dims(x)) not in (2, 3) or (len(dims(x)) == 3 and dims(x)[1] == 1):
            continue
        weight = matmul.inputs[1]
        add = matmul.outputs[0].outputs[0]
        name, output = add.name or add.outputs[0].name, add.outputs[0]
        for gone in (matmul, add):
            gone.inputs.clear()
            gone.outputs.clear()
        if len(dims(x)) == 2:
            graph.nodes.append(types.node("Gemm", name=f"{name}/gemm", inputs=[x, weight, bias], outputs=[output]))
            made += 1
            continue
        width = dims(weight)[1]
        assert isinstance(width, int)
        flat = types.variable(f"{name}/flat", dtype=np.float32, shape=[f"{name}/flat", width])
        full = shapes.behind(x, width)
        graph.nodes += [
            types.node("Gemm", name=f"{name}/gemm", inputs=[shapes.rows(x), weight, bias], outputs=[flat]),
            types.node("Reshape", name=f"{name}/from_rows", inputs=[flat, full], outputs=[output]),
        ]
        made += 1
    _stay_flat(graph)
    return made


def bias_of(matmul: Node) -> Tensor | None:
    """The bias that a product of rows with weights [C,M] gets, and nothing else reads the product; else None."""
    weight = value_of(matmul.inputs[1])
    readers = matmul.outputs[0].outputs if matmul.outputs else []
    if weight is None or weight.ndim != 2 or len(readers) != 1 or readers[0].op != "Add":
        return None
    biases = ((tensor, value_of(tensor)) for tensor in readers[0].inputs)
    return next((t for t, value in biases if value is not None and value.ndim == 1 and value.size == weight.shape[1]), None)


class _Shapes:
    """Ways from [B,N,C] to rows [B*N,C] and back, each written once.

    Every number of rows has a name of its own: ONNX Runtime lets tensors whose dimensions have the same name share memory.
    """

    def __init__(self, graph: Graph, handed: dict[int, Tensor]) -> None:
        self.graph, self.handed = graph, handed
        images = dims(graph.inputs[0])[0]
        self.batch = images if isinstance(images, int) else None
        self._rows: dict[int, Tensor] = {}
        self._read: dict[tuple[int, int], Tensor] = {}

    def rows(self, x: Tensor) -> Tensor:
        """X [B,N,C] as [B*N,C]."""
        width = dims(x)[2]
        above = x.inputs[0] if x.inputs else None
        if above is not None and above.op == "Reshape" and len(dims(above.inputs[0])) == 2 and dims(above.inputs[0])[1] == width:
            return above.inputs[0]
        if id(x) not in self._rows:
            rows = types.variable(f"{x.name}/rows", dtype=np.float32, shape=[f"{x.name}/rows", width])
            minus = types.constant(f"{x.name}/rows_shape", np.array([-1, width], np.int64))
            self.graph.nodes.append(types.node("Reshape", name=f"{x.name}/to_rows", inputs=[x, minus], outputs=[rows]))
            self._rows[id(x)] = rows
        return self._rows[id(x)]

    def behind(self, x: Tensor, width: int) -> Tensor:
        """The shape [B,N,width] to go back to."""
        site = site_above(x)
        tokens = dims(x)[1] if site is None else dims(site.outputs[0])[1]
        if self.batch is not None or isinstance(tokens, int):
            known = [-1, tokens, width] if self.batch is None else [self.batch, -1, width]
            return types.constant(f"{x.name}/back_{width}_{len(self.graph.nodes)}", np.array(known, np.int64))
        if site is not None and dims(site.outputs[0])[2] == width and id(site) in self.handed:
            return self.handed[id(site)]
        if (id(x), width) not in self._read:
            self._read[id(x), width] = self._off(x, width)
        return self._read[id(x), width]

    def _off(self, x: Tensor, width: int) -> Tensor:
        outer = types.variable(f"{x.name}/outer_{width}", dtype=np.int64)
        full = types.variable(f"{x.name}/full_{width}", dtype=np.int64)
        constant = types.constant(f"{x.name}/width_{width}", np.array([width], np.int64))
        self.graph.nodes += [
            types.node("Shape", name=outer.name, attrs={"start": 0, "end": -1}, inputs=[x], outputs=[outer]),
            types.node("Concat", name=full.name, attrs={"axis": 0}, inputs=[outer, constant], outputs=[full]),
        ]
        return full


def _stay_flat(graph: Graph) -> None:
    """A GELU between two linear maps works on the rows as they are: no way back to [B,N,C] and none from it."""
    for gelu in [node for node in graph.nodes if node.op == "Gelu"]:
        back = gelu.inputs[0].inputs[0] if gelu.inputs[0].inputs else None
        readers = gelu.outputs[0].outputs
        if back is None or not back.name.endswith("/from_rows") or any(not one.name.endswith("/to_rows") for one in readers):
            continue
        gelu.inputs = [back.inputs[0]]
        gelu.outputs[0].shape = dims(back.inputs[0])
        for reader in list(readers):
            types.redirect(list(reader.outputs[0].outputs), reader.outputs[0], gelu.outputs[0])
            reader.outputs.clear()
