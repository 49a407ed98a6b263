"""Where what stands behind the blocks reads them: block outputs, which a pruned graph can put back together, or anything else, which not."""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs

from vitprune.errors import ExportError
from vitprune.graph.anatomy.static import value_of


def taps_of(graph: gs.Graph, outputs: list[str], norms: list[str]) -> tuple[int, ...]:
    """Numbers of the blocks whose output is read behind the blocks, or is an output of the graph.

    Args:
        graph: with fixed batch, folded constants and shapes. outputs: the blocks' output tensors, in order. norms: the blocks' normed
            inputs. An exporter lets a head read those of the next block where both norms happen to be the same.

    Raises:
        ExportError: VP338 when anything else of the model is read behind the blocks.
    """
    tensors = graph.tensors()
    inside = body(graph.inputs[0], tensors[outputs[-1]])
    rows = {name: block - 1 for block, name in enumerate(norms) if block} | {name: block for block, name in enumerate(outputs)}
    found: set[int] = set()

    def note(tensor: Any, reader: str) -> None:
        if tensor.name in rows:
            found.add(rows[tensor.name])
        elif tensor is graph.inputs[0] or (tensor.inputs and id(tensor.inputs[0]) in inside):
            raise refused(tensor.name, reader)

    for node in graph.nodes:
        if id(node) not in inside:
            for tensor in node.inputs:
                if value_of(tensor) is None:
                    note(tensor, f"node '{node.name}' ({node.op})")
    for tensor in graph.outputs:
        note(tensor, "an output of the graph")
    return tuple(sorted(found))


def body(start: Any, end: Any) -> set[int]:
    """Ids of the nodes between two tensors: those that depend on `start` and that `end` depends on."""
    below, frontier = set(), [start]
    while frontier:
        for node in frontier.pop().outputs:
            if id(node) not in below:
                below.add(id(node))
                frontier.extend(node.outputs)
    return below & above([end])


def above(tensors: list[Any]) -> set[int]:
    """Ids of the nodes that tensors depend on."""
    found: set[int] = set()
    frontier = list(tensors)
    while frontier:
        for node in frontier.pop().inputs:
            if id(node) not in found:
                found.add(id(node))
                frontier.extend(node.inputs)
    return found


def refused(tensor: str, reader: str) -> ExportError:
    """VP338: what is read that no longer is what it was once tokens have left."""
    return ExportError(
        338,
        f"tensor '{tensor}' is read behind the blocks",
        cause=f"{reader} reads it; a pruned graph puts the outputs of blocks back together, and nothing else",
        next_step="export the model so that what follows reads outputs of blocks only (--output-name chooses one of several outputs)",
    )


def token_output(name: str) -> ExportError:
    """VP328: an output of all tokens where logits were asked for."""
    return ExportError(
        328,
        f"output '{name}' holds all tokens, not logits",
        cause="tokens leave in a pruned graph, so an output with one row per token would change its meaning",
        next_step="--set output.kind=features puts every token back in its place; or --output-name with an output that is classified or pooled",
    )


def shape_behind(output: Any) -> tuple[int, ...]:
    """The shape of an output without its batch, which must be its first dimension.

    Raises:
        ExportError: VP333 it is not known.
    """
    shape = list(output.shape or ())
    if len(shape) < 2 or not all(isinstance(size, int) for size in shape):
        raise ExportError(
            333,
            f"the shape of output '{output.name}' is not known",
            cause=f"with a batch of one image it is {shape}; features are compared row by row",
            next_step="--output-name with another output, or export the model with fixed sizes",
        )
    return tuple(int(size) for size in shape[1:])
