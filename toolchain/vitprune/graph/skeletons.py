"""A dense graph kept beside the pruned one without its weights: large tensors name those of the pruned graph that hold the same bytes."""

from __future__ import annotations

import onnx
import onnx.numpy_helper

from vitprune.support import onnx_weights

SKELETON = "dense.skeleton"
REFERENCE = "in model.onnx: "
SMALL = 256  # bytes of a tensor that is not worth a reference


def skeleton(dense: onnx.ModelProto, pruned: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `dense` (of `graph.surgery.dense`) in which tensors that `pruned` holds too are references to them; `fleshed` is its inverse."""
    names = {_content(tensor): tensor.name for tensor in pruned.graph.initializer}
    bare = onnx.ModelProto()
    bare.CopyFrom(dense)
    for tensor in bare.graph.initializer:
        told = bool(tensor.raw_data) or onnx_weights.elsewhere(tensor)  # other fields are rare, and are not looked at
        name = names.get(_content(tensor)) if told else None
        if name is not None and onnx_weights.nbytes(tensor) >= SMALL:
            onnx_weights.empty(tensor)
            tensor.doc_string = REFERENCE + name
        elif onnx_weights.elsewhere(tensor):
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx_weights.values(tensor), tensor.name))
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
        name, held = tensor.name, tensors.get(tensor.doc_string.removeprefix(REFERENCE))
        if held is None or (held.data_type, list(held.dims)) != (tensor.data_type, list(tensor.dims)):
            raise ValueError(f"'{tensor.name}' is not in model.onnx")
        tensor.CopyFrom(held)
        tensor.name = name
    return model


def _content(tensor: onnx.TensorProto) -> tuple[int, tuple[int, ...], bytes]:
    """Type, shape and bytes, or the place in a file where they are: of what is made of one graph, equal weights are in one place."""
    where = tensor.raw_data or b"".join(f"{entry.key}={entry.value};".encode() for entry in tensor.external_data)
    return tensor.data_type, tuple(tensor.dims), where
