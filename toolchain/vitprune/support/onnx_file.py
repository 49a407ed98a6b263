"""Reading ONNX files that may be anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitprune.errors import LoadError, first_line

if TYPE_CHECKING:
    import onnx


def read_model(path: Path) -> onnx.ModelProto:
    """The model in an ONNX file; weights beyond 2 GB stay in their files (`support.onnx_weights`).

    Raises:
        LoadError: VP604 it is none.
    """
    from vitprune.support import onnx_weights

    try:
        model = onnx_weights.load(path)
        if not model.graph.node or not model.graph.input or not model.graph.output:
            raise ValueError("it holds no graph")
        return model
    except Exception as error:  # protobuf's, onnx's and the system's
        raise LoadError(
            604, f"'{path}' is not a readable ONNX model", cause=first_line(error)[:200], next_step="export the bundle again"
        ) from error
