"""Nodes and initialisers of a model put in the place of its own.

What is put in may be the model's own messages: they are copied before the lists that hold them are emptied.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Let a graph have these nodes, in this order, and no others."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def replace_initializers(graph: onnx.GraphProto, tensors: Iterable[onnx.TensorProto]) -> None:
    """Let a graph have these initialisers and no others."""
    copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in tensors]
    del graph.initializer[:]
    graph.initializer.extend(copies)


def drop_unread(graph: onnx.GraphProto) -> None:
    """Take away the initialisers that no node reads."""
    read = {name for node in graph.node for name in node.input}
    replace_initializers(graph, [tensor for tensor in graph.initializer if tensor.name in read])
