"""Shapes that what stands behind the blocks takes from inside of them: there the number of tokens is no longer the dense one.

Exporters take the batch, or the number of tokens, from whatever tensor is at hand. Behind the blocks everything has the dense shape,
which the first block's input still has.
"""

from __future__ import annotations

from vitprune.graph.anatomy.taps import above, refused
from vitprune.graph.passes.base import Surgery
from vitprune.graph.types import Node, Tensor, node, redirect, variable


def read_dense_shapes(surgery: Surgery, inside: set[int]) -> None:
    """Let nodes behind the blocks read shapes of tokens off the first block's input.

    Raises:
        ExportError: VP338 the shape of another tensor of a block is read.
    """
    whole = surgery.tensors[surgery.anatomy.blocks[0].x]
    ahead = above([whole])
    rows = {
        name for block in surgery.anatomy.blocks for name in (block.x, block.h, block.attended, block.output, block.projected)
    }
    copies: dict[int, Tensor] = {}

    def copied(tensor: Tensor) -> Tensor:
        """The tensor as it would be if no token had left; itself where it is rows, or nothing in a block makes it."""
        made = tensor.inputs[0] if tensor.inputs else None
        if tensor.name in rows or made is None or id(made) not in inside or id(made) in ahead or "/unmerge/" in made.name:
            return tensor
        if id(tensor) not in copies:
            inputs = [source(made, one) for one in made.inputs]
            same = all(new is old for new, old in zip(inputs, made.inputs, strict=True))
            copies[id(tensor)] = tensor if same else _copy(surgery, made, tensor, inputs)
        return copies[id(tensor)]

    def source(made: Node, tensor: Tensor) -> Tensor:
        if made.op != "Shape":
            return copied(tensor)
        if id(tensor.inputs[0] if tensor.inputs else None) in ahead or tensor is surgery.graph.inputs[0]:
            return tensor
        if tensor.name not in rows:
            raise refused(tensor.name, f"node '{made.name}' takes its shape and")
        return whole

    live = above(list(surgery.graph.outputs)) - inside
    for reader in [one for one in surgery.graph.nodes if id(one) in live and "/unmerge/" not in one.name]:
        for tensor in list(reader.inputs):
            if (other := copied(tensor)) is not tensor:
                redirect([reader], tensor, other)


def _copy(surgery: Surgery, made: Node, tensor: Tensor, inputs: list[Tensor]) -> Tensor:
    result = variable(f"vitprune/behind/{tensor.name}", tensor.dtype or "int64")
    surgery.graph.nodes.append(
        node(made.op, f"vitprune/behind/{made.name}", inputs, [result], domain=made.domain, attrs=dict(made.attrs))
    )
    return result
