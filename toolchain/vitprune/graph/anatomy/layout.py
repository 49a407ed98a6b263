"""Which rows of the first block's input come from the image, and which stand for prefix tokens (CLS, registers)."""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs

from vitprune.errors import ExportError
from vitprune.graph.anatomy.static import axis_of, sliced, value_of

ROWWISE = {
    "Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal", "Cast", "Identity", "Dropout", "LayerNormalization", "ReduceMean",
    "SimplifiedLayerNormalization", "RMSNormalization", "BatchNormalization", "Erf", "Gelu", "Relu", "Sigmoid", "Tanh", "MatMul",
}  # fmt: skip


def prefix_of(graph: gs.Graph, tokens: Any, patches: int) -> int:
    """Number of prefix tokens, which must stand in front of the patches.

    Args:
        graph: with fixed batch and shapes. tokens: [B,N,C], the first block's input. patches: number of patches P.

    Raises:
        ExportError: VP326 when rows stand behind or between the patches, or where the layout cannot be read off the graph.
    """
    origins = _rows(tokens, int(tokens.shape[1]), graph.inputs[0], patches)
    count = len(origins) - patches
    if origins != [False] * count + [True] * patches:
        shown = "".join("P" if origin else "x" for origin in _runs(origins))
        raise _refused(
            f"node '{tokens.inputs[0].name}' ({tokens.inputs[0].op})",
            f"tokens are laid out as {shown} (P: rows of patches, x: other rows); prefix tokens must all stand before the patches",
        )
    return count


def _runs(origins: list[bool]) -> list[bool]:
    return [origin for place, origin in enumerate(origins) if place == 0 or origins[place - 1] != origin]


def _refused(where: str, cause: str) -> ExportError:
    return ExportError(
        326,
        "the token layout of this graph is not understood",
        cause=f"at {where}: {cause}",
        next_step="export a model whose class and register tokens stand in front, as timm and Hugging Face place them",
    )


def _rows(tensor: Any, count: int, image: Any, patches: int) -> list[bool]:
    """For each of the `count` rows of [B,n,C] (or [n,C]): does it come from the image?"""
    if not depends_on(tensor, image):
        return [False] * count
    node, rank = tensor.inputs[0], len(tensor.shape or ())
    if node.op == "Concat" and axis_of(node, rank) == rank - 2:
        return [origin for part, rows in _parts(node, count) for origin in _rows(part, rows, image, patches)]
    if node.op == "Slice" and (taken := sliced(node)) is not None and taken[0] >= rank - 2:
        above = _rows(node.inputs[0], int(node.inputs[0].shape[rank - 2]), image, patches)
        return [above[row] for row in taken[1]] if taken[0] == rank - 2 else above
    if node.op in ROWWISE:
        live = [part for part in node.inputs if _may_have(part, count, rank) and depends_on(part, image)]
        if live and _has_concat_above(live[0], image):
            lists = [_rows(part, count, image, patches) for part in live]
            return [any(origins) for origins in zip(*lists, strict=True)]
    if count == patches:
        return [True] * count
    raise _refused(
        f"node '{node.name}' ({node.op})", f"{count} rows where {patches} patches, or a Concat of them with others, were expected"
    )


def _may_have(part: Any, count: int, rank: int) -> bool:
    """Whether an operand runs over `count` rows; shape inference leaves sizes open where a batch is expanded."""
    shape: list[int] = list(part.shape or ())
    return len(shape) == rank and (shape[-2] == count or not isinstance(shape[-2], int))


def _parts(node: gs.Node, count: int) -> list[tuple[Any, int]]:
    """Inputs of a Concat with their numbers of rows; one that shape inference left open is what the others leave."""
    sizes = [part.shape[-2] if part.shape and isinstance(part.shape[-2], int) else None for part in node.inputs]
    if sizes.count(None) > 1:
        raise _refused(f"node '{node.name}' ({node.op})", "the numbers of rows it puts together are not known")
    rest = count - sum(size for size in sizes if size is not None)
    return [(part, rest if size is None else size) for part, size in zip(node.inputs, sizes, strict=True)]


def _has_concat_above(tensor: Any, image: Any) -> bool:
    """Whether rows were put together anywhere above, so that going on makes sense."""
    frontier, seen = [tensor], set()
    while frontier:
        here = frontier.pop()
        node = here.inputs[0] if here.inputs else None
        if node is None or id(node) in seen or not depends_on(here, image):
            continue
        seen.add(id(node))
        rank = len(here.shape or ())
        if node.op == "Concat" and rank >= 2 and axis_of(node, rank) == rank - 2:
            return True
        frontier.extend(node.inputs)
    return False


def depends_on(tensor: Any, image: Any) -> bool:
    """Whether values of a tensor follow from the image (its shape alone does not count)."""
    frontier, seen = [tensor], set()
    while frontier:
        here = frontier.pop()
        if here is image:
            return True
        if id(here) in seen or value_of(here) is not None or not here.inputs:
            continue
        seen.add(id(here))
        node = here.inputs[0]
        if node.op in ("Shape", "Size"):
            continue
        frontier.extend(node.inputs)
    return False
