"""Constants that reach their readers through an Identity, as torch's TorchScript exporter writes equal ones."""

from __future__ import annotations

from vitprune.graph.types import Graph, is_constant, redirect


def direct(graph: Graph) -> None:
    """Let readers of an Identity of a constant read the constant, so that passes see weights and biases for what they are."""
    for node in graph.nodes:
        if node.op == "Identity" and is_constant(node.inputs[0]) and not any(node.outputs[0] is one for one in graph.outputs):
            redirect(list(node.outputs[0].outputs), node.outputs[0], node.inputs[0])
