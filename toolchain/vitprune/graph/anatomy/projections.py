"""From an operand of an attention product up to the linear map that makes it, whichever exporter wrote the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from vitprune.errors import ExportError
from vitprune.graph.anatomy.positions import rotation_between, source_of
from vitprune.graph.anatomy.rms import rms_above
from vitprune.graph.anatomy.static import integer_of, scalar_of, sliced, value_of
from vitprune.support.attention import Rotation

PASS_THROUGH = {"Cast", "Identity", "Dropout"}
RESHAPING = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"} | PASS_THROUGH


@dataclass(frozen=True)
class Linear:
    """weight [in,out], bias [out] or None, and the tensor it reads."""

    weight: np.ndarray
    bias: np.ndarray | None
    source: str


@dataclass(frozen=True)
class HeadNorm:
    """LayerNorm over the head dimension (q/k norm), or over all heads before the projection; rms: RMSNorm instead."""

    weight: np.ndarray
    bias: np.ndarray | None
    epsilon: float
    rms: bool = False


def fail(index: int | None, node: Any, expected: str) -> ExportError:
    """VP322: what was seen where, and what was expected."""
    where = "the graph" if index is None else f"block {index}"
    seen = f"node '{node.name or node.op}' ({node.op})" if isinstance(node, gs.Node) else str(node)
    return ExportError(
        322,
        f"{where} does not look like a ViT block",
        cause=f"at {seen}: expected {expected}",
        next_step="export the dense model with timm or Hugging Face, without fusing attention into one node",
    )


def producer(tensor: Any) -> gs.Node | None:
    """The node that makes a tensor, or None."""
    return tensor.inputs[0] if tensor.inputs else None


def data_input(node: gs.Node) -> Any:
    """The one non-constant input of a node with a constant operand, else its first."""
    live = [tensor for tensor in node.inputs if value_of(tensor) is None]
    return live[0] if len(live) == 1 else node.inputs[0]


def linear_above(tensor: Any) -> Linear | None:
    """Match x @ W + b (MatMul with Add, or Gemm) whose output is `tensor`."""
    node, bias = producer(tensor), None
    if node is not None and node.op == "Add":
        constants = [value_of(t) for t in node.inputs]
        if sum(c is not None for c in constants) != 1:
            return None
        bias = next(c for c in constants if c is not None).reshape(-1)
        node = producer(data_input(node))
    if node is not None and node.op == "MatMul" and (weight := value_of(node.inputs[1])) is not None and weight.ndim == 2:
        return Linear(weight, bias, node.inputs[0].name)
    if node is not None and node.op == "Gemm" and bias is None and (weight := value_of(node.inputs[1])) is not None:
        weight = weight.T if node.attrs.get("transB", 0) else weight
        return Linear(weight, value_of(node.inputs[2]) if len(node.inputs) > 2 else None, node.inputs[0].name)
    return None


@dataclass
class Walk:
    """What lies between an operand of attention and its linear map."""

    linear: Linear
    scale: float
    norm: HeadNorm | None
    rotation: Rotation | None = None


def _selected_third(node: gs.Node, tensor: Any) -> int | None:
    """Which part of a packed projection a Slice, Gather or Split takes."""
    if node.op == "Slice" and (start := integer_of(node.inputs[1])) is not None:
        axis = integer_of(node.inputs[3]) if len(node.inputs) > 3 else None
        if axis is None or not tensor.shape or not node.inputs[0].shape:
            return None
        return start % int(node.inputs[0].shape[axis]) // int(tensor.shape[axis])
    if node.op == "Gather":
        return integer_of(node.inputs[1])
    if node.op == "Split":
        return next(i for i, output in enumerate(node.outputs) if output is tensor)
    return None


def first_column(node: gs.Node, tensor: Any) -> int | None:
    """First column of its input that a Split or Slice over the last axis takes for `tensor`, or None where it takes none."""
    rank = len(node.inputs[0].shape or ())
    if node.op == "Split" and int(node.attrs.get("axis", 0)) % max(rank, 1) == rank - 1:
        place = next(i for i, output in enumerate(node.outputs) if output is tensor)
        return sum(int(output.shape[-1]) for output in node.outputs[:place])
    taken = sliced(node) if node.op == "Slice" else None
    if taken is None or taken[0] != rank - 1 or taken[1] != list(range(taken[1][0], taken[1][0] + len(taken[1]))):
        return None
    return taken[1][0]


def walk_up(tensor: Any, index: int | None, heads: int, head_dim: int, tokens: int = 0, opset: int = 18, parts: int = 3) -> Walk:
    """From an operand of an attention product up to its linear map, alone or one of `parts` packed ones.

    Rotary positions are looked for where `tokens` is given.
    """
    scale, norm, part, every = 1.0, None, None, heads
    rotation: Rotation | None = None
    inner = heads * head_dim
    for _ in range(40):
        linear = linear_above(tensor)
        if linear is not None:
            found = _section(linear, part, inner, index, tensor, parts)
            return Walk(for_every_head(found, heads, every), scale, norm, rotation)
        node = producer(tensor)
        if node is None:
            break
        if node.op in ("Mul", "Div") and any(scalar_of(t) is not None for t in node.inputs):
            factor = next(s for t in node.inputs if (s := scalar_of(t)) is not None)
            scale *= factor if node.op == "Mul" else 1 / factor
            tensor = data_input(node)
        elif node.op in RESHAPING:
            if node.op == "Reshape" and node.outputs[0].shape is not None:
                shape = list(node.outputs[0].shape)
                if len(shape) == 5 and shape[3] == parts and shape[2] == heads and heads != parts:
                    raise fail(index, node, f"packed maps in the order [{parts}, heads, head_dim]")
            tensor = node.inputs[0]
        elif tensor.shape and tensor.shape[-1] == inner and (columns := columns_of(node, tensor)) is not None:
            return Walk(for_every_head(columns, heads, every), scale, norm, rotation)
        elif node.op == "Expand" and (shared := _shared_by(node, heads)) is not None:
            heads, tensor = shared, node.inputs[0]
            inner = heads * head_dim
        elif node.op in ("Slice", "Gather", "Split") and (taken := _selected_third(node, tensor)) is not None:
            part, tensor = taken, node.inputs[0]
        elif node.op == "LayerNormalization" and norm is None:
            weight = value_of(node.inputs[1])
            if weight is None or weight.size != head_dim:
                raise fail(index, node, f"q/k norm over the head dimension {head_dim}")
            norm = HeadNorm(
                weight, value_of(node.inputs[2]) if len(node.inputs) > 2 else None, float(node.attrs.get("epsilon", 1e-5))
            )
            tensor = node.inputs[0]
        elif tokens and norm is None and (rms := rms_above(tensor, head_dim, opset)) is not None:
            tensor, weight, epsilon = rms
            norm = HeadNorm(weight, None, epsilon, rms=True)
        elif tokens and rotation is None and (above := source_of(tensor)) is not None:
            rotation = rotation_between(above, tensor, heads, tokens, opset)
            if rotation is None or (heads != every and len(rotation.cos) > 1):
                raise fail(index, node, "rotary positions, row by row, between a linear map and attention")
            tensor = above
        else:
            raise fail(index, node, "reshapes, scaling, rotary positions or q/k norm between a linear map and attention")
    raise fail(index, f"tensor '{tensor.name}'", "a linear map with constant weights above attention")


def _shared_by(node: gs.Node, heads: int) -> int | None:
    """How many heads of keys or values [.,h,1,N,d] an Expand gives to `heads` heads of queries, or None where it does something else."""
    before, after = list(node.inputs[0].shape or ()), list(node.outputs[0].shape or ())
    if len(before) != 5 or len(after) != 5 or before[2] != 1 or [*before[:2], *before[3:]] != [*after[:2], *after[3:]]:
        return None
    return int(after[1]) if after[1] * after[2] == heads else None


def for_every_head(linear: Linear, heads: int, every: int) -> Linear:
    """A map to `heads` shared heads as one to `every` head (Ainslie et al., EMNLP 2023, arXiv 2305.13245): each stands for its group."""
    if heads == every:
        return linear
    weight = np.repeat(linear.weight.reshape(len(linear.weight), heads, -1), every // heads, axis=1).reshape(
        len(linear.weight), -1
    )
    bias = None if linear.bias is None else np.repeat(linear.bias.reshape(heads, -1), every // heads, axis=0).reshape(-1)
    return Linear(weight, bias, linear.source)


def columns_of(node: gs.Node, tensor: Any) -> Linear | None:
    """The part of a linear map that a Split or Slice straight behind it takes."""
    if node.op not in ("Split", "Slice") or not tensor.shape or not isinstance(tensor.shape[-1], int):
        return None
    packed, start = linear_above(node.inputs[0]), first_column(node, tensor)
    if packed is None or start is None:
        return None
    columns = slice(start, start + tensor.shape[-1])
    return Linear(packed.weight[:, columns], None if packed.bias is None else packed.bias[columns], packed.source)


def _section(linear: Linear, part: int | None, inner: int, index: int | None, tensor: Any, parts: int) -> Linear:
    """Cut one part out of a packed projection."""
    width = linear.weight.shape[1]
    if width == inner:
        return linear
    if width != parts * inner or part is None or part >= parts:
        raise fail(
            index, f"tensor '{tensor.name}'", f"a projection to {inner} or a packed one to {parts * inner} columns, found {width}"
        )
    columns = slice(part * inner, (part + 1) * inner)
    return Linear(linear.weight[:, columns], None if linear.bias is None else linear.bias[columns], linear.source)
