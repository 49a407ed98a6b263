"""The two linear maps of a block's MLP, whichever exporter wrote it."""

from __future__ import annotations

import numpy as np

from vitprune.errors import ExportError
from vitprune.graph.anatomy.static import value_of
from vitprune.graph.types import Node, Tensor

LINEAR = ("MatMul", "Gemm")


def not_understood(index: int, cause: str) -> ExportError:
    """VP316: why the layers of a block cannot be told apart."""
    return ExportError(
        316,
        f"the layers of block {index} are not understood, so they cannot take another type",
        cause=cause,
        next_step="--set precision.mode=fp32, or report the model with this message",
    )


def folded(tensor: Tensor) -> np.ndarray | None:
    """The constant behind a tensor, or None; exporters put Identity, Transpose or Cast between a weight and its reader."""
    value = value_of(tensor)
    above = tensor.inputs[0] if value is None and tensor.inputs else None
    if above is None or above.op not in ("Identity", "Transpose", "Cast"):
        return value
    inner = folded(above.inputs[0])
    if inner is None or above.op == "Identity":
        return inner
    if above.op == "Transpose":
        return np.transpose(inner, above.attrs.get("perm"))
    return inner.astype(np.float32) if int(above.attrs["to"]) == 1 else None


def linear_nodes(tensor: Tensor) -> list[Node]:
    """MatMul or Gemm with constant weights that makes a tensor, first, and the Add of its bias; [] when that is not what makes it."""
    node = tensor.inputs[0] if tensor.inputs else None
    if node is not None and node.op == "Add":
        live = [one for one in node.inputs if folded(one) is None]
        product = live[0].inputs[0] if len(live) == 1 and live[0].inputs else None
        if product is None or not _has_weights(product) or len(live[0].outputs) != 1:
            return []
        return [product, node]
    return [node] if node is not None and _has_weights(node) else []


def _has_weights(node: Node) -> bool:
    value = folded(node.inputs[1]) if node.op in LINEAR and len(node.inputs) > 1 else None
    return value is not None and value.ndim == 2


def second_linear(branch: Tensor, index: int) -> list[Node]:
    """The second linear map [MatMul or Gemm, then its bias Add] above what the second residual sum adds; LayerScale may follow it.

    Raises:
        ExportError: VP316.
    """
    tensor = branch
    for _ in range(8):
        if nodes := linear_nodes(tensor):
            return nodes
        above = tensor.inputs[0] if tensor.inputs else None
        live = [one for one in above.inputs if folded(one) is None] if above is not None else []
        if above is None or above.op not in ("Mul", "Identity", "Dropout", "Cast") or len(live) != 1:
            break
        tensor = live[0]
    raise not_understood(index, "above its second residual sum there is no linear map")


def first_linear(tensor: Tensor, index: int) -> list[Node]:
    """The one linear map whose result reaches the second one's input through an activation.

    Raises:
        ExportError: VP316 when there is none, or several (a gated MLP).
    """
    found: list[Node] = []
    frontier, seen = [tensor], set()
    while frontier:
        here = frontier.pop()
        if id(here) in seen or folded(here) is not None:
            continue
        seen.add(id(here))
        if nodes := linear_nodes(here):
            found += nodes
        elif not here.inputs or len(seen) > 64:
            raise not_understood(index, "above its second linear map there is no first one")
        else:
            frontier += here.inputs[0].inputs
    if len([node for node in found if node.op in LINEAR]) != 1:
        raise not_understood(index, "its MLP has more than one first linear map (a gated MLP)")
    return found
