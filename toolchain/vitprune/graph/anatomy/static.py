"""A copy of a graph with fixed batch, folded constants and inferred shapes, for looking things up by tensor name."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from vitprune.errors import ExportError
from vitprune.graph import held

LARGEST_FOLDED = 1 << 24  # bytes of a tensor that is computed from constants


def static_copy(model: onnx.ModelProto, batch: int = 1) -> gs.Graph:
    """Fold every shape computation of `model` at a fixed batch size; data-dependent tensors keep their names.

    Raises:
        ExportError: VP320 when a dimension other than the batch is left open.
    """
    fixed, weights = held.parted(model)
    initializers = {tensor.name for tensor in fixed.graph.initializer}
    for value in fixed.graph.input:
        if value.name in initializers:
            continue
        dims = value.type.tensor_type.shape.dim
        for position, dim in enumerate(dims):
            if dim.dim_value > 0:
                continue
            if position > 0:
                raise ExportError(
                    320,
                    f"input '{value.name}' has an open dimension {position}",
                    cause="only the batch may be dynamic: token counts follow from the image size",
                    next_step="export the dense model with a fixed image size",
                )
            dim.dim_value = batch
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    del fixed.graph.value_info[:]
    count = -1
    graph = held.attached(held.inferred(fixed, data_prop=True), weights)
    while len(graph.nodes) != count and _foldable(graph):
        count = len(graph.nodes)
        _fold_once(graph)
    return graph.cleanup()


def _foldable(graph: gs.Graph) -> bool:
    """Whether anything is left that `_fold_once` could take away."""
    return any(
        node.op in ("Constant", "Shape") or all(isinstance(tensor, gs.Constant) or tensor.is_empty() for tensor in node.inputs)
        for node in graph.nodes
    )


def _fold_once(graph: gs.Graph) -> None:
    logger = logging.getLogger("onnx_graphsurgeon")
    level = logger.level
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        logger.setLevel(logging.ERROR)
        _fold_shapes(graph)
        _fold_splits(graph)
        _fold_transposes(graph)
        _load_operands(graph)
        graph.fold_constants(size_threshold=LARGEST_FOLDED, fold_shapes=False).cleanup()
    logger.setLevel(level)
    held.infer(graph)


def _load_operands(graph: gs.Graph) -> None:
    """Load the weights of which graphsurgeon computes something, which it does with their values only."""
    known = {id(tensor) for node in graph.nodes for tensor in node.inputs if isinstance(tensor, gs.Constant)}
    for node in graph.nodes:
        if node.op == "Constant" or (node.inputs and all(id(tensor) in known or tensor.is_empty() for tensor in node.inputs)):
            known |= {id(output) for output in node.outputs}
            for tensor in node.inputs:
                if isinstance(tensor, gs.Constant):
                    tensor.values = held.values_of(tensor)


def _fold_shapes(graph: gs.Graph) -> None:
    """Replace Shape of a tensor of known shape; graphsurgeon's own folding ignores the attributes start and end."""
    for node in graph.nodes:
        shape = node.inputs[0].shape if node.op == "Shape" else None
        if shape is None or not all(isinstance(dim, int) for dim in shape):
            continue
        start, end = node.attrs.get("start", 0), node.attrs.get("end")
        constant = gs.Constant(f"{node.outputs[0].name}/folded", np.asarray(shape, np.int64)[start:end])
        for consumer in list(node.outputs[0].outputs):
            consumer.inputs = [constant if tensor is node.outputs[0] else tensor for tensor in consumer.inputs]


def _fold_splits(graph: gs.Graph) -> None:
    """Replace the parts of split constants; graphsurgeon folds no operator with several outputs."""
    for node in graph.nodes:
        whole = value_of(node.inputs[0]) if node.op == "Split" else None
        if whole is None:
            continue
        axis, count = int(node.attrs.get("axis", 0)), len(node.outputs)
        sizes = value_of(node.inputs[1]) if len(node.inputs) > 1 else node.attrs.get("split")
        if sizes is None:
            each = -(-whole.shape[axis] // count)
            sizes = [each] * (count - 1) + [whole.shape[axis] - each * (count - 1)]
        for output, part in zip(node.outputs, np.split(whole, np.cumsum(sizes)[:-1], axis=axis), strict=True):
            constant = gs.Constant(f"{output.name}/folded", np.ascontiguousarray(part))
            for consumer in list(output.outputs):
                consumer.inputs = [constant if tensor is output else tensor for tensor in consumer.inputs]


def _fold_transposes(graph: gs.Graph) -> None:
    """Replace transposed constants by views of them: computed, a large weight would be there twice."""
    for node in graph.nodes:
        if node.op != "Transpose" or not isinstance(node.inputs[0], gs.Constant):
            continue
        whole, output = held.values_of(node.inputs[0]), node.outputs[0]
        turned = gs.Constant(f"{output.name}/folded", whole.transpose(node.attrs.get("perm")))
        for consumer in list(output.outputs):
            consumer.inputs = [turned if tensor is output else tensor for tensor in consumer.inputs]


def value_of(tensor: Any) -> np.ndarray | None:
    """The constant behind a tensor, or None."""
    if isinstance(tensor, gs.Constant):
        return held.values_of(tensor)
    if tensor.inputs and tensor.inputs[0].op == "Constant":
        value = tensor.inputs[0].attrs.get("value")
        return held.values_of(value) if isinstance(value, gs.Constant) else None
    return None


def scalar_of(tensor: Any) -> float | None:
    """The constant scalar behind a tensor of one element, or None."""
    value = value_of(tensor)
    return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None


def integer_of(tensor: Any) -> int | None:
    """The constant integer behind a tensor of one element, or None."""
    value = scalar_of(tensor)
    return None if value is None else int(value)


def axis_of(node: gs.Node, rank: int, default: int = 0) -> int:
    """The attribute `axis` of a node, counted from the front."""
    return int(node.attrs.get("axis", default)) % rank


def sliced(node: gs.Node) -> tuple[int, list[int]] | None:
    """Axis and positions that a Slice over one axis takes, or None where its bounds are not constant."""
    shape = node.inputs[0].shape
    bounds = [value_of(tensor) for tensor in node.inputs[1:]]
    if shape is None or len(bounds) < 2 or any(bound is None for bound in bounds):
        return None
    starts, ends = (np.asarray(bound).reshape(-1) for bound in bounds[:2])
    axes = np.arange(len(starts)) if len(bounds) < 3 else np.asarray(bounds[2]).reshape(-1)
    steps = np.ones(len(starts), np.int64) if len(bounds) < 4 else np.asarray(bounds[3]).reshape(-1)
    if len(starts) != 1 or not isinstance(shape[int(axes[0])], int):
        return None
    axis, size = int(axes[0]) % len(shape), int(shape[int(axes[0])])
    positions = range(size)[slice(int(starts[0]), int(np.clip(ends[0], -(2**31), 2**31)), int(steps[0]))]
    return axis, list(positions)


def over_pairs(node: gs.Node) -> bool:
    """Whether a Softmax has a value for each pair of tokens, [B,H,N,N] or [B*H,N,N], and sums to one over the second of them."""
    shape: Sequence[Any] = node.outputs[0].shape or ()
    if node.attrs.get("axis", -1) not in (-1, len(shape) - 1):
        return False
    return len(shape) in (3, 4) and all(isinstance(size, int) for size in shape) and shape[-1] == shape[-2]
