"""The dense graph: exported by torch, or read from a file."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx

from vitprune.errors import ExportError, LoadError, first_line
from vitprune.exporting.fingerprint import fingerprint
from vitprune.graph import held
from vitprune.graph.normal.operators import checkable
from vitprune.graph.surgery import MAX_IR
from vitprune.recipe import Recipe
from vitprune.support import cache, garbage, onnx_weights
from vitprune.support.files import inside

ANSI = re.compile(r"\x1b\[[0-9;]*m")
KIND = "dense"  # of the cache's entries


def read_onnx(path: Path, aside: int | None = None) -> onnx.ModelProto:
    """Read an ONNX file; weights beyond 2 GB, or of more than `aside` bytes, stay in their files (`support.onnx_weights`).

    Raises:
        LoadError: VP604 missing, truncated or not ONNX.
    """
    if not path.is_file():
        raise LoadError(604, f"'{path}' not found", cause="no such file", next_step="check the path of the dense ONNX model")
    try:
        model = onnx_weights.load(path, aside)
        if not model.graph.node or not model.opset_import:
            raise ValueError("it holds no graph")
        model.ir_version = min(model.ir_version, MAX_IR)  # newer ones add nothing a ViT needs, and runtimes refuse them
        if onnx_weights.any_elsewhere(model):
            held.check(held.parted(checkable(model))[0])
        else:
            onnx.checker.check_model(checkable(model), full_check=False)
    except Exception as error:
        missing = _missing_parts(path)
        raise LoadError(
            604,
            f"'{path}' is not a readable ONNX model",
            cause=f"its weights lie in '{missing[0]}', which is not there" if missing else str(error).splitlines()[0][:200],
            next_step=f"put '{missing[0]}' beside it" if missing else "export the dense model again; the file may be truncated",
        ) from error
    return model


def _missing_parts(path: Path) -> list[str]:
    """Files of external weights that a model names, in its folder, and that are not there."""
    try:
        bare = onnx.load(str(path), load_external_data=False)
        tensors = [tensor for tensor in bare.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
        named = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    except Exception:  # not ONNX at all: the first error says so
        return []
    return sorted(name for name in named if inside(name) and not (path.parent / name).exists())


@contextlib.contextmanager
def written_out(module: Any) -> Iterator[None]:
    """Attention with position biases as products and a softmax: torch.export cannot follow its fused form where the batch is open."""
    biased = [
        part
        for part in module.modules()
        if getattr(part, "fused_attn", False)
        and (getattr(part, "relative_position_bias_table", None) is not None or hasattr(part, "rel_pos"))
    ]
    for part in biased:
        part.fused_attn = False
    try:
        yield
    finally:
        for part in biased:
            part.fused_attn = True


@contextlib.contextmanager
def frozen(module: Any) -> Iterator[None]:
    """Parameters that ask for no gradients: torch.export then traces no autograd along, a tenth of an export."""
    asking = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def _innermost(error: BaseException) -> str:
    """What went wrong first, without colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    return ANSI.sub("", first_line(error)).strip()[:200]


def dense_onnx(
    module: Any, image_shape: tuple[int, int, int], recipe: Recipe, report: Callable[[str], None] = lambda text: None
) -> onnx.ModelProto:
    """Export a dense module with torch.onnx; its output is called logits, or as its `names` say.

    What was exported before from the same weights, structure, versions and options comes from the cache (`support.cache`), which is reported.

    Raises:
        ExportError: VP304 when torch cannot export it, VP337 weights beyond 2 GB.
    """
    if (size := 4 * sum(parameter.numel() for parameter in module.parameters())) > onnx_weights.MOST_BYTES:
        by_hand = "torch.onnx.export(module, (image,), 'dense.onnx', dynamo=True, external_data=True)"
        raise onnx_weights.too_large(
            size,
            "this model",
            "what torch exports is taken over as one message",
            f"{by_hand}, and give that file to vitprune rewrite",
        )
    names, graph = list(getattr(module, "names", ["logits"])), recipe.graph
    key = fingerprint(module, image_shape, graph.opset, graph.static_batch, names) if cache.folder() is not None else None
    if key is not None and (stored := cache.read(KIND, key)) is not None:
        report(f"dense export: made before from these weights, taken from the cache ({key[:12]})")
        return onnx.load_model_from_string(stored)
    model = _exported(module, image_shape, recipe, names)
    if key is not None:
        cache.write(KIND, key, model.SerializeToString())
    return model


def _exported(module: Any, image_shape: tuple[int, int, int], recipe: Recipe, names: list[str]) -> onnx.ModelProto:
    """What torch.onnx makes of a module; arguments and errors as `dense_onnx`."""
    import torch

    static = recipe.graph.static_batch
    image = torch.zeros(static or 2, *image_shape)
    dynamic = None if static else ({0: torch.export.Dim("batch", min=1, max=4096)},)
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            written_out(module),
            frozen(module),
            garbage.unsearched(),
        ):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (image,),
                dynamo=True,
                opset_version=recipe.graph.opset,
                input_names=["image"],
                output_names=names,
                dynamic_shapes=dynamic,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            304,
            "torch cannot export the dense model to ONNX",
            cause=_innermost(error),
            next_step="try another torch version, or export the ONNX yourself and use vitprune rewrite",
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces with paths of the exporting machine
    del model.graph.value_info[:]
    return model
