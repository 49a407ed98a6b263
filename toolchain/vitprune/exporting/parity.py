"""The samples of a bundle, what the reference says of them, and whether the rewritten graph agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitprune.backends.onnxruntime import make_session
from vitprune.data import images as image_data
from vitprune.errors import ExportError
from vitprune.recipe import Recipe
from vitprune.support.limits import limits, require

SAMPLE_BYTES = 6 << 20
MIN_SAMPLES = 8


def samples(recipe: Recipe, preprocessing: dict[str, Any], data: str | Path | None) -> image_data.Images:
    """The images a bundle stores, from `data` or synthetic: as many as the recipe validates on and the bundle's size allows."""
    require("one image of the model", int(np.prod(preprocessing["input_size"])), limits.values, "values")
    per_image = 4 * int(np.prod(preprocessing["input_size"]))
    count = min(recipe.validation.samples, max(MIN_SAMPLES, SAMPLE_BYTES // per_image))
    return image_data.synthetic(count, preprocessing) if data is None else image_data.load(Path(data), preprocessing, count)


def reference_arrays(oracle: Any, module: Any, inputs: image_data.Images, static: int | None) -> dict[str, NDArray[Any]]:
    """Reference results, computed in pieces of the batch the graph will see."""
    import torch

    size = static or 8
    parts = []
    with torch.inference_mode():
        for start in range(0, len(inputs), size):
            x = torch.from_numpy(inputs.pixels[start : start + size])
            logits = oracle(x).numpy()
            parts.append(
                (
                    logits,
                    module(x).numpy(),
                    [k.numpy() for k in oracle.kept],
                    [m.numpy() for m in oracle.margin],
                    [o.numpy() for o in oracle.overflow],
                )
            )
    arrays = {
        "images": inputs.pixels,
        "logits": np.concatenate([p[0] for p in parts]),
        "dense_logits": np.concatenate([p[1] for p in parts]),
    }
    from vitprune.backends.onnxruntime import _stack

    for number, site in enumerate(oracle.sites):
        arrays[f"kept_{site.block}"] = _stack([p[2][number] for p in parts])
        arrays[f"margin_{site.block}"] = np.concatenate([p[3][number] for p in parts]).astype(np.float32)
        arrays[f"overflow_{site.block}"] = np.concatenate([p[4][number] for p in parts])
    return arrays


def check(model: onnx.ModelProto, arrays: dict[str, NDArray[Any]], recipe: Recipe) -> dict[str, Any]:
    """Run the graph on the samples and compare with the reference.

    Raises:
        ExportError: VP330 when a gate of the recipe fails already here.
    """
    from vitprune.backends import Result
    from vitprune.validation.compare import compare, failures

    session = make_session(model.SerializeToString())
    blocks = [int(name.removeprefix("kept_")) for name in arrays if name.startswith("kept_")]
    logits, *kept = run(session, arrays["images"], recipe.graph.static_batch)
    comparison = compare(Result(logits, kept), arrays, blocks, recipe.validation.gates)
    broken = [gate for gate in failures(comparison, recipe.validation.gates) if gate.name in ("logits_max_abs", "decisions")]
    if broken:
        raise ExportError(
            330,
            "the rewritten graph and the PyTorch reference disagree",
            cause="; ".join(gate.text() for gate in broken),
            next_step="report the model and recipe with this message",
        )
    return comparison.document()


def run(session: Any, pixels: NDArray[np.float32], static: int | None) -> list[NDArray[Any]]:
    """Logits and kept patches of all images, in pieces of the batch that the graph takes."""
    from vitprune.backends.onnxruntime import _stack, result_names

    name, wanted = session.get_inputs()[0].name, result_names(session)
    size = static or 8
    parts = []
    for start in range(0, len(pixels), size):
        piece = pixels[start : start + size]
        short = size - len(piece) if static else 0
        fed = np.concatenate([piece, np.repeat(piece[-1:], short, axis=0)]) if short else piece
        parts.append([value[: len(piece)] for value in session.run(wanted, {name: fed})])
    return [np.concatenate([p[0] for p in parts]), *(_stack([p[i] for p in parts]) for i in range(1, len(parts[0])))]
