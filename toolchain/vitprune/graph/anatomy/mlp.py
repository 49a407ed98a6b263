"""The MLP of a block, from the attention's residual sum to the block's output."""

from __future__ import annotations

from typing import Any

from vitprune.graph.anatomy.projections import fail
from vitprune.graph.anatomy.static import value_of


def mlp(attended: Any, index: int) -> tuple[int, str, str]:
    """Hidden width of the MLP, the block's output tensor and what the residual sum adds to `attended`.

    The width is that of a plain MLP with as many weights: a gated one has three matrices where a plain one has two.
    """
    residuals = [node for node in attended.outputs if node.op == "Add" and sum(value_of(t) is None for t in node.inputs) == 2]
    residual = residuals[-1] if residuals else None
    if residual is None:
        raise fail(index, f"tensor '{attended.name}'", "a second residual sum after the MLP")
    branch = next((tensor for tensor in residual.inputs if tensor is not attended), attended)
    width = int(attended.shape[-1])
    return round(_weights(branch, attended) / (2 * width)), residual.outputs[0].name, branch.name


def _weights(bottom: Any, top: Any) -> int:
    """Weights of the linear maps between two tensors."""
    frontier, seen, count = [bottom], set(), 0
    while frontier:
        tensor = frontier.pop()
        node = tensor.inputs[0] if tensor.inputs and tensor is not top else None
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if node.op in ("MatMul", "Gemm") and (weight := value_of(node.inputs[1])) is not None:
            count += int(weight.size)
        frontier.extend(one for one in node.inputs if value_of(one) is None)
    return count
