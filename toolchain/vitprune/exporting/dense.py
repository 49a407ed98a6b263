"""The dense graph: exported by torch, or read from a file."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import onnx

from vitprune.errors import ExportError, LoadError
from vitprune.graph.surgery import MAX_IR
from vitprune.recipe import Recipe


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        LoadError: VP604 missing, truncated or not ONNX.
    """
    if not path.is_file():
        raise LoadError(604, f"'{path}' not found", cause="no such file", next_step="check the path of the dense ONNX model")
    try:
        model = onnx.load(str(path))
        if not model.graph.node or not model.opset_import:
            raise ValueError("it holds no graph")
        model.ir_version = min(model.ir_version, MAX_IR)  # newer ones add nothing a ViT needs, and runtimes refuse them
        onnx.checker.check_model(model, full_check=False)
    except Exception as error:
        raise LoadError(
            604,
            f"'{path}' is not a readable ONNX model",
            cause=str(error).splitlines()[0][:200],
            next_step="export the dense model again; the file may be truncated",
        ) from error
    return model


def dense_onnx(module: Any, image_shape: tuple[int, int, int], recipe: Recipe) -> onnx.ModelProto:
    """Export a dense module with torch.onnx.

    Raises:
        ExportError: VP304 when torch cannot export it.
    """
    import torch

    static = recipe.graph.static_batch
    image = torch.zeros(static or 2, *image_shape)
    dynamic = None if static else ({0: torch.export.Dim("batch", min=1, max=4096)},)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (image,),
                dynamo=True,
                opset_version=recipe.graph.opset,
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes=dynamic,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            304,
            "torch cannot export the dense model to ONNX",
            cause=str(error).splitlines()[0][:200],
            next_step="try another torch version, or export the ONNX yourself and use vitprune rewrite",
        ) from error
    finally:
        logger.setLevel(level)
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces with paths of the exporting machine
    del model.graph.value_info[:]
    return model
