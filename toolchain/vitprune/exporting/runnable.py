"""Whether a foreign graph is one at all: ONNX Runtime loads it and runs it once. Asked where understanding it failed in an odd way."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from vitprune.backends.onnxruntime import make_session
from vitprune.errors import LoadError, first_line
from vitprune.support.limits import limits, require
from vitprune.support.onnx_file import read_model


def require_runnable(path: Path) -> None:
    """Refuse what ONNX Runtime cannot load, and what it cannot run on zeros where the sizes of its one input are stated.

    Raises:
        LoadError: VP604, VP612. BeyondLimit: the input is too large.
    """
    model = read_model(path)
    if why := _unreadable(model):
        raise _refused(path, why)
    known = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in known]
    session = make_session(path)
    dims = inputs[0].type.tensor_type.shape.dim if len(inputs) == 1 else []
    sizes = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in dims]
    if len(sizes) != 4 or not all(sizes[1:]):
        return
    if min(sizes) < 0:
        raise _refused(path, f"its input is {sizes}")
    require("the graph's input", math.prod(sizes[1:]) * max(1, sizes[0]), limits.values, "values")
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
    kind = kinds.get(session.get_inputs()[0].type)
    if kind is None:
        return
    try:
        session.run(None, {inputs[0].name: np.zeros([sizes[0] or 1, *sizes[1:]], kind)})
    except Exception as error:
        raise _refused(path, first_line(error)[:200]) from error


def _unreadable(model: onnx.ModelProto) -> str:
    """Why the texts or numbers in a graph cannot be read, or ""; protobuf hands out as bytes what is no text."""
    try:
        for tensor in model.graph.initializer:
            numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        return first_line(error)
    for node in model.graph.node:
        for text in (node.name, node.op_type, node.domain, *node.input, *node.output, *(one.name for one in node.attribute)):
            if not isinstance(text, str):
                return f"{text!r} is no text"
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer]
    wrong = [value.name for value in values if not isinstance(value.name, str)]
    return f"{wrong[0]!r} is no text" if wrong else ""


def _refused(path: Path, cause: str) -> LoadError:
    return LoadError(604, f"'{path}' cannot be run", cause=cause, next_step="export the dense model again")
