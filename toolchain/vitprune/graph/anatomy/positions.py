"""Rotary positions between a linear map (or q/k norm) and attention, whichever exporter wrote them.

The operators are not matched one by one. What lies between the one tensor that everything depends on and the operand of attention is
computed for a few probes: two give the tables of sines and cosines under each of the two layouts, and rows of random numbers must come
out as those tables say. What is not a rotation of single rows fails that check.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx.reference import ReferenceEvaluator

from vitprune.graph import held
from vitprune.graph.anatomy.static import value_of
from vitprune.graph.sorting import toposort
from vitprune.support.attention import Rotation

MOST_NODES = 80
TOLERANCE = 1e-5


def source_of(tensor: Any) -> Any | None:
    """The lowest tensor above `tensor` that all of it depends on, or None where there is none near."""
    order = _order(tensor)
    frontier = {tensor.name: tensor}
    while True:
        known = [one for one in frontier.values() if one.inputs and id(one.inputs[0]) in order]
        if not known:
            return None
        last = max((one.inputs[0] for one in known), key=lambda node: order[id(node)])
        frontier = {name: one for name, one in frontier.items() if not one.inputs or one.inputs[0] is not last}
        frontier |= {one.name: one for one in _live(last)}
        if len(frontier) == 1:
            return next(iter(frontier.values()))


def _order(tensor: Any) -> dict[int, int]:
    """Places of the nearest nodes above a tensor in an order in which whatever is read stands before its reader."""
    near: dict[int, gs.Node] = {}
    queue = [tensor.inputs[0]] if tensor.inputs else []
    while queue and len(near) < MOST_NODES:
        node = queue.pop(0)
        if id(node) not in near:
            near[id(node)] = node
            queue.extend(above.inputs[0] for above in _live(node) if above.inputs)
    order: dict[int, int] = {}
    stack = [(tensor.inputs[0], False)] if tensor.inputs else []
    while stack:
        node, done = stack.pop()
        if done:
            order.setdefault(id(node), len(order))
        elif id(node) in near and id(node) not in order:
            stack.append((node, True))
            stack.extend((above.inputs[0], False) for above in _live(node) if above.inputs)
    return order


def _live(node: gs.Node) -> list[Any]:
    return [one for one in node.inputs if one.name and value_of(one) is None]


def rotation_between(source: Any, result: Any, heads: int, tokens: int, opset: int) -> Rotation | None:
    """The rotation that makes `result` of `source`, both [1,H,N,d], [H,N,d] or [1,N,H,d], with tables over all N rows, or None."""
    shape = [int(size) for size in source.shape or () if isinstance(size, int)]
    if list(result.shape or ()) != shape or len(shape) not in (3, 4):
        return None
    head_axis = len(shape) - 3 if shape[-3:-1] == [heads, tokens] else len(shape) - 2
    if heads == tokens or {shape[head_axis], shape[2 * len(shape) - 5 - head_axis]} != {heads, tokens}:
        return None
    run = function_between(source, result, opset)

    def per_head(x: np.ndarray) -> np.ndarray:
        """[H,N,d] through the graph."""
        given = np.broadcast_to(x if head_axis == len(shape) - 3 else x.swapaxes(0, 1), shape)
        out: np.ndarray = run(np.ascontiguousarray(given, np.float32)).reshape(shape[-3:])
        return out if head_axis == len(shape) - 3 else out.swapaxes(0, 1)

    width = shape[-1]
    random = np.random.default_rng(0).standard_normal((heads, tokens, width)).astype(np.float32)
    wanted = per_head(random)
    for half in (True, False):
        rotation = _tables(per_head, heads, tokens, width, half)
        if rotation is not None and np.abs(rotated(random, rotation) - wanted).max() <= TOLERANCE * max(
            1.0, np.abs(wanted).max()
        ):
            shared = all(np.allclose(table, table[:1], atol=1e-7) for table in (rotation.cos, rotation.sin))
            return Rotation(rotation.cos[:1], rotation.sin[:1], half) if shared else rotation
    return None


def _tables(per_head: Any, heads: int, tokens: int, width: int, half: bool) -> Rotation | None:
    """Two probes: ones in the first channels of all pairs, then in the second ones."""
    if width % 2:
        return None
    channels = np.arange(width)
    first = channels < width // 2 if half else channels % 2 == 0
    ones = np.ones((heads, tokens, 1), np.float32)
    one, two = per_head(ones * first), per_head(ones * ~first)
    cos, sin = np.where(first, one, two), np.where(first, -two, one)
    return Rotation(cos.astype(np.float32), sin.astype(np.float32), half)


def rotated(x: np.ndarray, rotation: Rotation) -> np.ndarray:
    """X [H,N,d] as `Rotation` says, with tables over all N rows."""
    half = x.shape[-1] // 2
    if rotation.half:
        turned = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    else:
        turned = np.stack([-x[..., 1::2], x[..., ::2]], axis=-1).reshape(x.shape)
    result: np.ndarray = x * rotation.cos + turned * rotation.sin
    return result


def of_patches(rotation: Rotation, prefix: int) -> Rotation | None:
    """The tables of the patches, or None where prefix tokens are rotated."""
    still = np.allclose(rotation.cos[:, :prefix], 1, atol=1e-6) and np.allclose(rotation.sin[:, :prefix], 0, atol=1e-6)
    return Rotation(rotation.cos[:, prefix:], rotation.sin[:, prefix:], rotation.half) if still else None


def same(one: Rotation | None, other: Rotation | None) -> bool:
    """Whether queries and keys are rotated alike."""
    if one is None or other is None:
        return one is other
    return one.half == other.half and all(
        a.shape == b.shape and np.allclose(a, b, atol=1e-6) for a, b in ((one.cos, other.cos), (one.sin, other.sin))
    )


def function_between(source: Any, result: Any, opset: int) -> Any:
    """The part of a graph from `source` to `result`, as a function of arrays."""
    nodes, frontier, seen = [], [result], set()
    while frontier:
        here = frontier.pop()
        if here.name == source.name or not here.inputs or id(here.inputs[0]) in seen:
            continue
        seen.add(id(here.inputs[0]))
        nodes.append(here.inputs[0])
        frontier.extend(_live(here.inputs[0]))
        frontier.extend(one for one in here.inputs[0].inputs if not isinstance(one, gs.Constant) and value_of(one) is not None)
    part = gs.Graph(nodes=nodes, inputs=[source], outputs=[result], opset=opset)
    copy = part.copy()
    tensors = copy.tensors()
    tensors[source.name].inputs.clear()
    copy.inputs, copy.outputs = [tensors[source.name]], [tensors[result.name]]
    copy.inputs[0].dtype = copy.inputs[0].dtype or np.float32
    copy.outputs[0].dtype = copy.outputs[0].dtype or np.float32
    copy.cleanup(remove_unused_graph_inputs=False)
    toposort(copy)
    evaluator: Any = ReferenceEvaluator(held.rebuilt(copy))
    name = copy.inputs[0].name
    return lambda x: evaluator.run(None, {name: x})[0]
