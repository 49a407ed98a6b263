"""How the rest of the graph reads the tokens after the last block: token by token, by a prefix token, or by a mean.

Every operator on the way is either understood or refused by name: a reader of one fixed row, of the last rows, or of all rows at
once would read other tokens, or pad slots, once tokens have left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from vitprune.errors import ExportError
from vitprune.graph.anatomy.attention_pool import AttentionPool, FoundPool
from vitprune.graph.anatomy.static import axis_of, scalar_of, sliced, value_of

ELEMENTWISE = {
    "Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal", "Cast", "Identity", "Dropout", "Erf", "Gelu", "Relu", "Sigmoid", "Tanh",
    "Neg", "Clip", "Exp", "Where", "HardSigmoid", "HardSwish", "Elu", "LeakyRelu", "Softplus", "Mish",
}  # fmt: skip
ROW_NORMS = {"LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"}
PER_ROW = {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "Softmax", "LogSoftmax"} | ROW_NORMS


@dataclass(frozen=True)
class Mean:
    """A mean over tokens, by names in the dense graph.

    tokens: what is averaged, of `rank` axes. axis: its token axis. skipped: leading tokens left out. output: the mean. keepdims:
    whether the token axis stays, with size 1. divided: written as a sum that is divided by the number of tokens.
    """

    tokens: str
    rank: int
    axis: int
    skipped: int
    output: str
    keepdims: bool
    divided: bool = False


@dataclass
class Readers:
    """What reads the tokens.

    prefix_rows: numbers of the prefix tokens that are read. means: see `Mean`. slices: nodes that take all rows from one on, by name,
    with that row: they may count from the end, and must not once tokens leave. whole: graph outputs that hold all tokens.
    pools: by attention.
    """

    prefix_rows: set[int] = field(default_factory=set)
    means: list[Mean] = field(default_factory=list)
    slices: dict[str, int] = field(default_factory=dict)
    whole: list[str] = field(default_factory=list)
    pools: list[AttentionPool] = field(default_factory=list)


@dataclass(frozen=True)
class _Rows:
    """A tensor whose axis `axis` runs over the dense model's token rows `rows`, in order."""

    tensor: Any
    axis: int
    rows: tuple[int, ...]


def readers_of(graph: gs.Graph, tokens: Any, prefix: int, pools: Sequence[FoundPool] = ()) -> Readers:
    """Follow the tokens [B,N,C] behind the last block.

    Args:
        graph: with fixed batch and shapes. tokens: the last block's output. prefix: number of prefix tokens.
        pools: those behind it.

    Raises:
        ExportError: VP327 when an operator reads the tokens in a way that pruning would change.
    """
    found, frontier, seen = Readers(), [_Rows(tokens, 1, tuple(range(int(tokens.shape[1]))))], set()
    while frontier:
        here = frontier.pop(0)
        if any(here.tensor is output for output in graph.outputs):
            found.whole.append(here.tensor.name)
        inside: set[int] = set()
        for pool in [pool for pool in pools if pool.pool.tokens == here.tensor.name]:
            found.pools.append(replace(pool.pool, skipped=_skipped(here, prefix, pool.pool)))
            inside |= pool.nodes
        for node in [node for node in here.tensor.outputs if id(node) not in inside]:
            if (id(node), id(here.tensor)) not in seen:
                seen.add((id(node), id(here.tensor)))
                frontier.extend(_follow(node, here, prefix, found))
    return found


def _skipped(here: _Rows, prefix: int, pool: AttentionPool) -> int:
    """Leading tokens that a pool leaves out; raises ExportError VP327 where its rows are not all patches."""
    skipped = _patches_behind(here, prefix) if here.axis == 1 and max(here.rows) >= prefix else None
    if skipped is None:
        raise refused(here.tensor.outputs[0], f"all patches, with or without prefix tokens, under the pool '{pool.projected}'")
    return skipped


def _follow(node: gs.Node, here: _Rows, prefix: int, found: Readers) -> list[_Rows]:
    """Tensors behind a reader that still run over tokens."""
    output = node.outputs[0]
    rank = len(here.tensor.shape or ())
    whole = output.shape is not None and len(output.shape) == rank
    if node.op in ELEMENTWISE and whole and _elementwise_fits(node, here):
        return [_Rows(output, here.axis, here.rows)]
    if node.op in PER_ROW and here.axis not in (axes := _axes(node, rank)):
        kept = node.attrs.get("keepdims", 1) or node.op in ROW_NORMS or node.op.endswith("Softmax")
        return [_Rows(output, here.axis if kept else here.axis - sum(axis < here.axis for axis in axes), here.rows)]
    if node.op in ("MatMul", "Gemm") and _applies_weights(node, here):
        return [_Rows(output, here.axis, here.rows)]
    if node.op == "Transpose":
        perm = list(node.attrs.get("perm", range(rank - 1, -1, -1)))
        return [_Rows(output, perm.index(here.axis), here.rows)]
    if node.op == "ReduceMean" and _axes(node, rank) == [here.axis]:
        return _mean(node, here, prefix, output, found)
    if node.op == "ReduceSum" and _axes(node, rank) == [here.axis]:
        return _mean_by_division(node, here, prefix, found)
    if node.op == "Slice":
        return _slice(node, here, prefix, found)
    if node.op == "Gather" and axis_of(node, rank) == here.axis:
        return _gather(node, here, prefix, found)
    if node.op in ("Split",):
        return _split(node, here, prefix, found)
    if node.op == "Reshape" and output.shape is not None:
        return _reshape(node, here)
    raise refused(node, "an operator that works token by token, a prefix token, or a mean over tokens")


def _applies_weights(node: gs.Node, here: _Rows) -> bool:
    """Whether every row is multiplied with constant weights."""
    rows_left = node.inputs[0] is here.tensor and here.axis < len(here.tensor.shape) - 1 and not node.attrs.get("transA", 0)
    return rows_left and value_of(node.inputs[1]) is not None


def refused(node: gs.Node, expected: str) -> ExportError:
    """VP327: who reads the tokens in which way, and what was expected."""
    return ExportError(
        327,
        f"the tokens behind the last block are read by node '{node.name or node.outputs[0].name}' ({node.op})",
        cause=f"once tokens leave it would read others, or pad slots; expected {expected}",
        next_step="choose another output with --output-name, or export the model with a head on the CLS token or on the mean of all patches",
    )


def _axes(node: gs.Node, rank: int) -> list[int]:
    if node.op in ROW_NORMS:
        return list(range(node.attrs.get("axis", -1) % rank, rank))
    if node.op.endswith("Softmax"):
        return [node.attrs.get("axis", -1) % rank]
    given = value_of(node.inputs[1]) if len(node.inputs) > 1 else node.attrs.get("axes")
    return list(range(rank)) if given is None else sorted(int(axis) % rank for axis in np.asarray(given).reshape(-1))


def _elementwise_fits(node: gs.Node, here: _Rows) -> bool:
    """Other operands must not run over the tokens by themselves: a constant per row would meet other rows."""
    rank = len(here.tensor.shape)
    from_end = rank - here.axis
    for other in node.inputs:
        shape = other.shape if other.shape is not None else np.asarray(value_of(other)).shape
        across = len(shape) >= from_end and int(shape[len(shape) - from_end]) != 1
        if other is not here.tensor and across and value_of(other) is not None:
            raise refused(node, "no constant with one value per token")
    return True


def _patches_behind(here: _Rows, prefix: int) -> int | None:
    """Leading rows left out, where the rows are all tokens from one on and hold all patches; else None."""
    first = here.rows[0] if here.rows else -1
    last = max(here.rows, default=-1)
    return first if 0 <= first <= prefix and here.rows == tuple(range(first, last + 1)) else None


def _mean(node: gs.Node, here: _Rows, prefix: int, output: Any, found: Readers, divided: bool = False) -> list[_Rows]:
    if here.rows and max(here.rows) < prefix:
        raise refused(node, "a mean over patches, or single prefix tokens")
    skipped = _patches_behind(here, prefix)
    if skipped is None:
        raise refused(node, "a mean over all patches, with or without prefix tokens")
    keepdims = bool(node.attrs.get("keepdims", 1))
    found.means.append(Mean(here.tensor.name, len(here.tensor.shape), here.axis, skipped, output.name, keepdims, divided))
    return []


def _mean_by_division(node: gs.Node, here: _Rows, prefix: int, found: Readers) -> list[_Rows]:
    """Sum over tokens, divided by their number."""
    total = node.outputs[0]
    reader = total.outputs[0] if len(total.outputs) == 1 else None
    factor = next((s for t in reader.inputs if (s := scalar_of(t)) is not None), None) if reader is not None else None
    count = len(here.rows)
    divides = reader is not None and reader.op == "Div" and reader.inputs[0] is total and factor == count
    scales = reader is not None and reader.op == "Mul" and factor is not None and np.isclose(factor * count, 1, rtol=1e-6)
    if reader is None or not (divides or scales):
        raise refused(node, f"a sum over tokens that is divided by their number, {count}, straight away")
    return _mean(node, here, prefix, reader.outputs[0], found, divided=True)


def _slice(node: gs.Node, here: _Rows, prefix: int, found: Readers) -> list[_Rows]:
    taken = sliced(node)
    if taken is None:
        raise refused(node, "a Slice with constant bounds")
    axis, rows = taken
    if axis != here.axis:
        return [_Rows(node.outputs[0], here.axis, here.rows)]
    return _taken(
        node,
        here,
        tuple(here.rows[row] for row in rows),
        prefix,
        found,
        bool(rows) and rows == list(range(rows[0], len(here.rows))),
    )


def _taken(node: gs.Node, here: _Rows, rows: tuple[int, ...], prefix: int, found: Readers, to_end: bool) -> list[_Rows]:
    if rows and max(rows) < prefix and here.rows == tuple(range(here.rows[0], here.rows[-1] + 1)):
        # Prefix tokens stay in front, so a fixed row of theirs is the same row in a pruned graph; counted from the end it is not.
        if _counts_from_end(node):
            raise refused(node, "prefix tokens counted from the front")
        found.prefix_rows |= set(rows)
        return []
    taken = _Rows(node.outputs[0], here.axis, rows)
    if to_end and _patches_behind(taken, prefix) is not None:
        found.slices[node.name] = rows[0] - here.rows[0]
        return [taken]
    raise refused(node, f"prefix tokens (the first {prefix} rows), or all patches")


def _counts_from_end(node: gs.Node) -> bool:
    given = value_of(node.inputs[1])
    bounds = [given] + ([value_of(node.inputs[2])] if node.op == "Slice" else [])
    return any(bound is not None and (np.asarray(bound) < 0).any() for bound in bounds)


def _gather(node: gs.Node, here: _Rows, prefix: int, found: Readers) -> list[_Rows]:
    indices = value_of(node.inputs[1])
    if indices is None:
        raise refused(node, "constant row numbers")
    rows = tuple(here.rows[int(row)] for row in np.asarray(indices).reshape(-1))
    return _taken(node, here, rows, prefix, found, False)


def _split(node: gs.Node, here: _Rows, prefix: int, found: Readers) -> list[_Rows]:
    axis = axis_of(node, len(here.tensor.shape), default=0)
    if axis != here.axis:
        return [_Rows(output, here.axis, here.rows) for output in node.outputs]
    raise refused(node, "no Split along the tokens")


def _reshape(node: gs.Node, here: _Rows) -> list[_Rows]:
    """A Reshape that keeps the token axis where it is, with the batch before it untouched."""
    before, after = [int(d) for d in here.tensor.shape], [int(d) for d in node.outputs[0].shape]
    axis = here.axis
    if before[: axis + 1] == after[: axis + 1] and len(here.rows) == before[axis]:
        given = value_of(node.inputs[1])
        if given is not None and int(given[axis]) in (0, -1):
            return [_Rows(node.outputs[0], axis, here.rows)]
    raise refused(node, "no Reshape that mixes tokens with other axes or bakes their number in")
