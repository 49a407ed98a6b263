"""What lies between the image and the first block of a dense ViT graph: one convolution, a linear map of pixels, or tokens-to-token."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from vitprune.graph.anatomy.static import value_of


def embedding(graph: gs.Graph, tokens: Any) -> tuple[int, int] | None:
    """Patches and MACs of what makes `tokens` [B,N,C], or None where it is neither a convolution nor a linear map of rows of pixels.

    The last convolution has one cell for each patch, the last map one row (SigLIP2's, NaFlex's). MACs are those of all convolutions and
    products.

    Args:
        graph: in topological order, with shapes. tokens: the input of the first block.
    """
    above = _above(graph, tokens)
    macs = sum(_macs(node) for node in above)
    maps = [node.outputs[0].shape for node in above if node.op == "Conv" and len(node.outputs[0].shape or ()) == 4]
    if maps:
        return int(maps[-1][2]) * int(maps[-1][3]), macs
    rows = [
        node.outputs[0].shape for node in above
        if node.op == "MatMul" and value_of(node.inputs[1]) is not None and len(node.outputs[0].shape or ()) == 3
    ]  # fmt: skip
    return (int(rows[-1][1]), macs) if rows else None


def _above(graph: gs.Graph, tokens: Any) -> list[gs.Node]:
    """Nodes that `tokens` depends on, in the order of the graph."""
    names, frontier = {tokens.name}, [tokens]
    while frontier:
        fresh = [tensor for node in frontier.pop().inputs for tensor in node.inputs if tensor.name not in names]
        names.update(tensor.name for tensor in fresh)
        frontier.extend(fresh)
    return [node for node in graph.nodes if node.outputs and node.outputs[0].name in names]


def _macs(node: gs.Node) -> int:
    """MACs per image. A convolution whose kernels hold a single one each copies cells and counts nothing."""
    shape = node.outputs[0].shape
    if node.op == "Conv" and len(shape or ()) == 4 and (kernel := value_of(node.inputs[1])) is not None:
        copies = kernel[0].size > 1 and bool((np.count_nonzero(kernel.reshape(len(kernel), -1), axis=1) == 1).all())
        return 0 if copies else int(shape[2]) * int(shape[3]) * int(kernel.size)
    if node.op in ("MatMul", "Gemm") and node.inputs[0].shape:
        rows = int(np.prod(shape[1:])) if len(shape) > 2 else int(shape[-1])
        return rows * int(node.inputs[0].shape[-1])
    return 0
