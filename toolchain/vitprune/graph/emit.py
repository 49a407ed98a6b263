"""Write nodes into a graphsurgeon graph without naming every intermediate by hand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from vitprune.graph import types
from vitprune.graph.types import Graph, Shape, Tensor

FLOAT, INT64, BOOL = np.float32, np.int64, np.bool_


class Emitter:
    """Appends nodes under a readable prefix such as "block3/attn"; the graph is sorted once at the end.

    Names begin with the prefix, so emitters that are not children of one must not share its first part.
    """

    def __init__(self, graph: Graph, prefix: str, constants: dict[tuple[str, str, bytes], Tensor] | None = None) -> None:
        self.graph, self.prefix = graph, prefix
        self._constants = {} if constants is None else constants
        self._count = 0

    def child(self, name: str) -> Emitter:
        """An emitter for a sub-scope that shares small constants."""
        return Emitter(self.graph, f"{self.prefix}/{name}", self._constants)

    def constant(self, value: ArrayLike, dtype: DTypeLike = INT64, name: str | None = None) -> Tensor:
        """An initialiser; unnamed ones are shared by value."""
        array = np.asarray(value, dtype=dtype, order="C")
        if name is not None:
            return types.constant(f"{self.prefix}/{name}", array)
        key = (str(array.dtype), str(array.shape), array.tobytes())
        if key not in self._constants:
            self._constants[key] = types.constant(f"{self.prefix.split('/')[0]}/const_{len(self._constants)}", array)
        return self._constants[key]

    def op(
        self,
        kind: str,
        inputs: Sequence[Tensor],
        label: str,
        *,
        dtype: DTypeLike = FLOAT,
        shape: Shape | None = None,
        domain: str | None = None,
        **attrs: Any,
    ) -> Tensor:
        """One node with one output named after its label; returns the output."""
        return self.ops(kind, inputs, label, [(dtype, shape)], domain=domain, **attrs)[0]

    def ops(
        self,
        kind: str,
        inputs: Sequence[Tensor],
        label: str,
        outputs: Sequence[tuple[DTypeLike, Shape | None]],
        *,
        domain: str | None = None,
        **attrs: Any,
    ) -> list[Tensor]:
        """One node with several outputs given as (dtype, shape)."""
        self._count += 1
        name = f"{self.prefix}/{label}"
        results = [types.variable(f"{name}:{i}" if i else name, dtype, shape) for i, (dtype, shape) in enumerate(outputs)]
        self.graph.nodes.append(types.node(kind, name, inputs, results, domain=domain, attrs=attrs))
        return results

    def linear(self, x: Tensor, weight: np.ndarray, bias: np.ndarray | None, label: str) -> Tensor:
        """X @ weight + bias; weight [in,out]."""
        y = self.op("MatMul", [x, self._shared(weight, f"{label}.weight")], f"{label}/matmul")
        if bias is None:
            return y
        return self.op("Add", [y, self._shared(bias, f"{label}.bias")], label)

    def _shared(self, array: np.ndarray, name: str) -> Tensor:
        """A named initialiser, written once however often its values are used."""
        array = np.ascontiguousarray(array, dtype=FLOAT)
        key = ("shared", str(array.shape), hashlib.sha256(array.data).digest())
        if key not in self._constants:
            self._constants[key] = types.constant(f"{self.prefix}/{name}", array)
        return self._constants[key]

    def slice(self, x: Tensor, start: int, end: int | None, axis: int, label: str, dtype: DTypeLike = FLOAT) -> Tensor:
        """x[start:end] along one axis; end None = to the end."""
        stop = np.iinfo(np.int64).max if end is None else end
        return self.op("Slice", [x, self.constant([start]), self.constant([stop]), self.constant([axis])], label, dtype=dtype)

    def take_rows(self, x: Tensor, rows: Tensor, label: str, shape: Shape | None = None) -> Tensor:
        """X [B,N,C], rows int64 [B,M,1] -> [B,M,C], a shape to be stated where it is known."""
        return self.op("GatherND", [x, rows], label, shape=shape, batch_dims=1)

    def reduce(self, kind: str, x: Tensor, axis: int, label: str, keepdims: int = 0) -> Tensor:
        """ReduceMax or ReduceMean over one axis; the axis is an input from opset 18 on, an attribute before."""
        if self.graph.opset < 18:
            return self.op(kind, [x], label, axes=[axis], keepdims=keepdims)
        return self.op(kind, [x, self.constant([axis])], label, keepdims=keepdims)
