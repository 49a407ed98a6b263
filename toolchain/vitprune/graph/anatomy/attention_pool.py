"""Attention pooling behind the blocks: constant latent queries attend to the tokens (timm's AttentionPoolLatent, SigLIP's head).

What is not understood is no pool here; `readers` then names the node that reads the tokens in a way that pruning would change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from vitprune.errors import ExportError
from vitprune.graph.anatomy.projections import PASS_THROUGH, HeadNorm, Linear, producer, walk_up
from vitprune.graph.anatomy.static import over_pairs, value_of
from vitprune.graph.anatomy.walking import (
    attention_product,
    before_moves,
    down_to_projection,
    only_consumer,
    tensor_named,
)


@dataclass(frozen=True)
class AttentionPool:
    """One pool; tensors by name in the dense graph.

    tokens: rows [B,N,C] that keys and values are made of. skipped: leading tokens of the model left out of them. query: float32
    [L,H,d], with the scale of the logits in it. projected: output [B,L,C'] of the projection.
    """

    heads: int
    head_dim: int
    query: np.ndarray
    key: Linear
    value: Linear
    key_norm: HeadNorm | None
    projection: Linear
    tokens: str
    projected: str
    skipped: int = 0


@dataclass(frozen=True)
class FoundPool:
    """A pool, and the nodes (by identity) between its tokens and its two products."""

    pool: AttentionPool
    nodes: frozenset[int]


def pools_of(graph: gs.Graph, last: Any) -> list[FoundPool]:
    """Pools behind the tensor `last` [B,N,C] of a graph with fixed batch and shapes."""
    behind, frontier = set(), [last]
    while frontier:
        for node in frontier.pop().outputs:
            if id(node) not in behind:
                behind.add(id(node))
                frontier.extend(node.outputs)
    found = []
    for softmax in graph.nodes:
        if softmax.op == "Softmax" and id(softmax) in behind and not over_pairs(softmax):
            try:
                pool = _pool(softmax, int(last.shape[0]))
            except ExportError:
                continue
            if pool is not None:
                found.append(pool)
    return found


def _pool(softmax: gs.Node, batch: int) -> FoundPool | None:
    """The pool that a Softmax belongs to, None where it is of another form; raises ExportError VP322 likewise."""
    shape = [int(size) for size in softmax.outputs[0].shape or ()]
    if len(shape) not in (3, 4) or softmax.attrs.get("axis", -1) not in (-1, len(shape) - 1):
        return None
    product, scale, bias = attention_product(softmax, None)
    heads, latents, tokens = (shape[1] if len(shape) == 4 else shape[0] // batch), shape[-2], shape[-1]
    reader = only_consumer(softmax.outputs[0], None)
    while reader.op in PASS_THROUGH:
        reader = only_consumer(reader.outputs[0], None)
    if reader.op != "MatMul" or not reader.inputs[1].shape or len(product.outputs[0].outputs) != 1:
        return None
    head_dim = int(reader.inputs[1].shape[-1])
    query = _query(value_of(product.inputs[0]), (batch, heads, latents, head_dim))
    key = walk_up(product.inputs[1], None, heads, head_dim, parts=2)
    value = walk_up(reader.inputs[1], None, heads, head_dim, parts=2)
    if (
        bias is not None
        or query is None
        or value.scale != 1.0
        or value.norm is not None
        or key.linear.source != value.linear.source
    ):
        return None
    rows = before_moves(tensor_named(key.linear.source, softmax))
    projection, projected, norm = down_to_projection(reader, None)
    if norm is not None or list(rows.shape or ())[:2] != [batch, tokens] or list(projected.shape)[:2] != [batch, latents]:
        return None
    nodes = _between(rows, [product, reader])
    if nodes is None:
        return None
    scaled = (query * np.float32(scale * key.scale)).transpose(1, 0, 2)
    pool = AttentionPool(
        heads, head_dim, np.ascontiguousarray(scaled), key.linear, value.linear, key.norm, projection, rows.name, projected.name
    )
    return FoundPool(pool, nodes)


def _query(value: np.ndarray | None, shape: tuple[int, int, int, int]) -> np.ndarray | None:
    """Constant queries float32 [H,L,d], the same for every image of the batch; else None."""
    if value is None or value.size not in (int(np.prod(shape)), int(np.prod(shape[1:]))):
        return None
    every = np.asarray(value, np.float32).reshape(-1, *shape[1:])
    return every[0] if (every == every[:1]).all() else None


def _between(rows: Any, ends: list[gs.Node]) -> frozenset[int] | None:
    """Nodes from `rows` up to the right operands of `ends`, None where something else reads what is between."""
    nodes: dict[int, gs.Node] = {}
    frontier = [end.inputs[1] for end in ends]
    while frontier:
        tensor = frontier.pop()
        node = None if tensor is rows else producer(tensor)
        if node is not None and id(node) not in nodes:
            nodes[id(node)] = node
            frontier.extend(node.inputs)
    inside = set(nodes) | {id(end) for end in ends}
    readers = [reader for node in nodes.values() for output in node.outputs for reader in output.outputs]
    return frozenset(nodes) if all(id(reader) in inside for reader in readers) else None
