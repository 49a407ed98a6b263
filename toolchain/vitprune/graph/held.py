"""Graphs whose weights are held apart, so that copying, inferring, checking and exporting a graph moves no weights.

A bare model has the same nodes and initialisers, but of large ones only name, type and shape. In an onnx-graphsurgeon graph such a
constant is a `Held`: exported it is bare again, its values are read when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter
from onnx_graphsurgeon.ir.tensor import LazyValues

from vitprune.graph.types import Graph, Tensor
from vitprune.support import onnx_weights
from vitprune.support.onnx_types import FLOATS
from vitprune.support.onnx_weights import Spill, nbytes

LEAST = 1024  # bytes; what is smaller may be a shape, a bound or an axis, which inference reads
ELSEWHERE = "held"  # where a bare tensor says that its values are


class Held(LazyValues):  # type: ignore[misc, no-any-unimported]  # gs tells lazy constants from others by this class
    """Values of a constant: of a tensor of a model, or an array.

    Attributes:
        tensor: the bare TensorProto, which gs writes.
    """

    def __init__(self, source: TensorProto | np.ndarray, name: str = "") -> None:
        self._stored = None if isinstance(source, np.ndarray) else source
        self._array = source if isinstance(source, np.ndarray) else None
        super().__init__(_bare_array(source, name) if isinstance(source, np.ndarray) else _bare_tensor(source))

    def load(self) -> np.ndarray:
        """The values; read once."""
        if self._array is None:
            assert self._stored is not None, "a tensor or an array, see __init__"
            self._array = onnx_weights.values(self._stored)
        return self._array

    def write(self, tensor: TensorProto, spill: Spill | None) -> None:
        """Put the values into a bare tensor, which keeps its name; those of arrays into `spill`, where there is one."""
        name = tensor.name
        if self._stored is not None:
            tensor.CopyFrom(self._stored)
            tensor.name = name
            return
        if spill is not None:
            spill.keep(tensor, self.load())
            self._stored, self._array = TensorProto(), None  # graphs are circles: what they hold would stay for long
            self._stored.CopyFrom(tensor)
            return
        tensor.ClearField("data_location")
        del tensor.external_data[:]
        tensor.raw_data = self.load().tobytes()


def _is_weight(tensor: TensorProto) -> bool:
    return tensor.data_type in FLOATS and nbytes(tensor) >= LEAST


def _bare_tensor(tensor: TensorProto) -> TensorProto:
    return _bare(tensor.name, tensor.data_type, tensor.dims)


def _bare_array(array: np.ndarray, name: str) -> TensorProto:
    return _bare(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def _bare(name: str, kind: int, dims: Iterable[int]) -> TensorProto:
    bare = TensorProto(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
    bare.external_data.add(key="location", value=ELSEWHERE)
    return bare


def is_bare(tensor: TensorProto) -> bool:
    """Whether a tensor of a model is one whose values are held apart."""
    return tensor.data_location == TensorProto.EXTERNAL and tensor.external_data[0].value == ELSEWHERE


def parted(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Held]]:
    """A bare copy of a model, and its weights by name."""
    bare, held = onnx.ModelProto(), dict[str, Held]()
    _copy_but(bare, model, "graph")
    _copy_but(bare.graph, model.graph, "initializer")
    for tensor in model.graph.initializer:
        if _is_weight(tensor):
            held[tensor.name] = Held(tensor)
            bare.graph.initializer.append(held[tensor.name].tensor)
        else:
            bare.graph.initializer.append(tensor)
    return bare, held


def _copy_but(made: Any, message: Any, left_out: str) -> None:
    """All fields of a protobuf message but one."""
    for field, value in message.ListFields():
        if field.name == left_out:
            continue
        if hasattr(value, "extend"):
            getattr(made, field.name).extend(value)
        elif hasattr(value, "ListFields"):
            getattr(made, field.name).CopyFrom(value)
        else:
            setattr(made, field.name, value)


def filled(bare: onnx.ModelProto, held: Mapping[str, Held], spill: Spill | None = None) -> onnx.ModelProto:
    """A bare model with its weights, changed in place; new ones in `spill`, where there is one."""
    for tensor in bare.graph.initializer:
        if is_bare(tensor):
            held[tensor.name].write(tensor, spill)
    return bare


def imported(model: onnx.ModelProto) -> Graph:
    """A model as a graph to work on, which shares its weights."""
    bare, held = parted(model)
    return attached(bare, held)


def attached(bare: onnx.ModelProto, held: Mapping[str, Held]) -> Graph:
    """A bare model as a graph to work on."""
    graph: Graph = gs.import_onnx(bare)
    for name, tensor in graph.tensors().items():
        if isinstance(tensor, gs.Constant) and name in held:
            tensor.values, tensor.data_location = held[name], None
    return graph


def exported(graph: Graph) -> tuple[onnx.ModelProto, dict[str, Held]]:
    """A graph as a bare model, and its weights by name."""
    held: dict[str, Held] = {}
    for tensor in graph.tensors().values():
        if not isinstance(tensor, gs.Constant):
            continue
        values = tensor._values
        if not isinstance(values, Held) and _holdable(values):
            values = tensor._values = Held(values if isinstance(values, np.ndarray) else values.tensor, tensor.name)
        if isinstance(values, Held):
            held[tensor.name] = values
    return gs.export_onnx(graph, do_type_check=False), held


def _holdable(values: Any) -> bool:
    if isinstance(values, np.ndarray):
        return values.dtype in (np.float32, np.float16, np.float64) and values.nbytes >= LEAST
    return type(values) is LazyValues and _is_weight(values.tensor)


def rebuilt(graph: Graph, spill: Spill | None = None) -> onnx.ModelProto:
    """A graph as a model with its weights; new ones in `spill`, where there is one."""
    return filled(*exported(graph), spill)


def values_of(constant: Any) -> np.ndarray:
    """The values of a constant, which stays lazy where it was."""
    values = constant._values
    return values.load() if isinstance(values, Held) else np.asarray(constant.values)


def inferred(bare: onnx.ModelProto, **options: bool) -> onnx.ModelProto:
    """A bare model with shapes, as onnx infers them."""
    made: onnx.ModelProto = onnx.shape_inference.infer_shapes(bare, **options)
    return made


def infer(graph: Graph) -> None:
    """Learn the shapes and types that onnx infers for tensors of a graph of which they are not known whole."""
    tensors = graph.tensors()
    open_ones = {name for name, tensor in tensors.items() if not isinstance(tensor, gs.Constant) and not _known(tensor)}
    made = inferred(exported(graph)[0], data_prop=True).graph
    for value in (*made.value_info, *made.output):
        if value.name in open_ones:
            learnt = OnnxImporter.import_tensor(value)
            tensors[value.name].shape, tensors[value.name].dtype = learnt.shape, learnt.dtype


def _known(tensor: Tensor) -> bool:
    """Whether a tensor has a type, and a number for each dimension."""
    return tensor.dtype is not None and tensor.shape is not None and all(isinstance(size, int) for size in tensor.shape)


def check(bare: onnx.ModelProto, **options: bool) -> None:
    """ONNX's checker and shape inference, with its options, on a bare model.

    Weights stand as inputs there, since the checker looks for the files of those that lie elsewhere.

    Raises:
        Exception: onnx's own, where it is not valid.
    """
    probe = onnx.ModelProto()
    _copy_but(probe, bare, "graph")
    _copy_but(probe.graph, bare.graph, "initializer")
    stated = {value.name for value in probe.graph.input}
    for tensor in bare.graph.initializer:
        if not is_bare(tensor):
            probe.graph.initializer.append(tensor)
        elif tensor.name not in stated:
            probe.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    onnx.checker.check_model(probe, full_check=False)
    onnx.shape_inference.infer_shapes(probe, **options)
