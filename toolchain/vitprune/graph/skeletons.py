"""A dense graph kept beside the pruned one without its weights: large tensors name those of the pruned graph that hold the same bytes."""

from __future__ import annotations

import onnx

SKELETON = "dense.skeleton"
REFERENCE = "in model.onnx: "
SMALL = 256  # bytes of a tensor that is not worth a reference


def skeleton(dense: onnx.ModelProto, pruned: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `dense` (of `graph.surgery.dense`) in which tensors that `pruned` holds too are references to them; `fleshed` is its inverse."""
    names = {_content(tensor): tensor.name for tensor in pruned.graph.initializer}
    bare = onnx.ModelProto()
    bare.CopyFrom(dense)
    for tensor in bare.graph.initializer:
        name = names.get(_content(tensor))
        if name is not None and len(tensor.raw_data) >= SMALL:
            tensor.raw_data = b""
            tensor.doc_string = REFERENCE + name
    return bare


def fleshed(bare: onnx.ModelProto, pruned: onnx.ModelProto) -> onnx.ModelProto:
    """The graph of a skeleton with its tensors.

    Raises:
        ValueError: a tensor that it names is not in `pruned`, or is another one.
    """
    tensors = {tensor.name: tensor for tensor in pruned.graph.initializer}
    model = onnx.ModelProto()
    model.CopyFrom(bare)
    for tensor in model.graph.initializer:
        if not tensor.doc_string.startswith(REFERENCE):
            continue
        held = tensors.get(tensor.doc_string.removeprefix(REFERENCE))
        if held is None or (held.data_type, list(held.dims)) != (tensor.data_type, list(tensor.dims)):
            raise ValueError(f"'{tensor.name}' is not in model.onnx")
        tensor.raw_data = held.raw_data
        tensor.doc_string = ""
    return model


def _content(tensor: onnx.TensorProto) -> tuple[int, tuple[int, ...], bytes]:
    return tensor.data_type, tuple(tensor.dims), tensor.raw_data
