"""The samples of a bundle, what the reference says of them, and whether the rewritten graph agrees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitprune.backends.onnxruntime import make_session
from vitprune.data import images as image_data
from vitprune.errors import ExportError
from vitprune.exporting.layers import check_layers, first_rows
from vitprune.graph.lowering.rounding import emulated
from vitprune.methods.base import Geometry
from vitprune.recipe import Recipe
from vitprune.support.answers import heads_and_lists, joined
from vitprune.support.limits import limits, require

SAMPLE_BYTES = 6 << 20
MIN_SAMPLES = 8
ALONE = 2
BATCH_LIMIT = 1e-5
EXPORT_GATES = ("logits_max_abs", "decisions", "features_max_abs", "cosine_mean", "cosine_p1")


def samples(
    recipe: Recipe, preprocessing: dict[str, Any], data: str | Path | None, classes: int | None, answers: int = 0
) -> image_data.Images:
    """The images a bundle stores, from `data` or synthetic: as many as the recipe validates on and the bundle's size allows.

    answers: values that the model answers an image with, where they are many.
    """
    require("one image of the model", int(np.prod(preprocessing["input_size"])), limits.values, "values")
    per_image = 4 * (int(np.prod(preprocessing["input_size"])) + 2 * answers)
    count = min(recipe.validation.samples, max(MIN_SAMPLES, SAMPLE_BYTES // per_image))
    if data is None:
        return odd_ones(image_data.synthetic(count, preprocessing))
    return image_data.load(Path(data), preprocessing, count, classes=classes, splits=("val", "train"))


def calibration(
    preprocessing: dict[str, Any], data: str | Path | None, classes: int | None
) -> Callable[[int], NDArray[np.float32]] | None:
    """What gives images to calibrate on, at most so many, of the training split where there is one; None without `data`."""
    if data is None:
        return None

    @lru_cache(maxsize=1)
    def images(count: int) -> NDArray[np.float32]:
        return image_data.load(Path(data), preprocessing, count, classes=classes, splits=("train", "val")).pixels

    return images


def odd_ones(images: image_data.Images) -> image_data.Images:
    """Synthetic samples of which the last two are unlike the rest: one has ten times the contrast, one all its detail in a quarter.

    Random images are so much alike that an adaptive method may keep the same number of tokens of each; then no slot is ever a pad, and
    a defect in what hides pads would pass.
    """
    pixels = images.pixels.copy()
    height, width = (max(1, size // 2) for size in pixels.shape[2:])
    pixels[-1] *= 10
    pixels[-2, :, height:], pixels[-2, :, :, width:] = 0, 0
    pixels[-2] *= 4
    return replace(images, pixels=pixels)


def reference_arrays(
    oracle: Any, inputs: image_data.Images, dense_logits: NDArray[Any], static: int | None
) -> dict[str, NDArray[Any]]:
    """Reference results, computed in pieces of the batch the graph will see."""
    import torch

    from vitprune.backends.onnxruntime import _stack
    from vitprune.validation.margins import sizes_of

    size = static or 8
    parts = []
    with torch.inference_mode():
        for start in range(0, len(inputs), size):
            logits = oracle(torch.from_numpy(inputs.pixels[start : start + size])).numpy()
            lists = (
                [value.numpy() for value in values]
                for values in (oracle.kept, oracle.margin, oracle.overflow, oracle.margin_sizes)
            )
            parts.append((logits, *lists))
    arrays = {"images": inputs.pixels, "logits": np.concatenate([p[0] for p in parts]), "dense_logits": dense_logits}
    for number, site in enumerate(oracle.sites):
        arrays[f"kept_{site.block}"] = _stack([p[1][number] for p in parts])
        arrays[f"margin_{site.block}"] = np.concatenate([p[2][number] for p in parts]).astype(np.float32)
        arrays[f"overflow_{site.block}"] = np.concatenate([p[3][number] for p in parts])
        arrays |= sizes_of(site.block, [p[4][number] for p in parts])
    return arrays


def module_logits(module: Any, pixels: NDArray[np.float32]) -> NDArray[Any]:
    """Logits of a dense module (or its several outputs side by side), in pieces."""
    import torch

    def answer(images: NDArray[np.float32]) -> NDArray[Any]:
        found = module(torch.from_numpy(images))
        return joined([one.numpy() for one in found]) if isinstance(found, tuple | list) else np.asarray(found.numpy())

    with torch.inference_mode():
        return np.concatenate([answer(pixels[start : start + 8]) for start in range(0, len(pixels), 8)])


def head_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes without the batch of a pruned graph's features, by name."""
    heads, _ = heads_and_lists(output.name for output in model.graph.output)
    return {
        output.name: tuple(dim.dim_value for dim in output.type.tensor_type.shape.dim)[1:]
        for output in model.graph.output[: len(heads)]
    }


def check(
    model: onnx.ModelProto, arrays: dict[str, NDArray[Any]], recipe: Recipe, geometry: Geometry, oracle: Any
) -> dict[str, Any]:
    """Run the graph on the samples and compare with the reference, of which `oracle` is the model; fp32 asks nothing more of it.

    Raises:
        ExportError: VP330 when a gate of the recipe fails already here.
    """
    from vitprune.backends import Result
    from vitprune.validation.compare import Comparison, compare, failures
    from vitprune.validation.following import follow
    from vitprune.validation.precision import decides_unseen, gates_in_force

    session = make_session(emulated(model), spin=False)
    heads = head_shapes(model) if recipe.output.features else {}
    blocks = [int(name.removeprefix("kept_")) for name in arrays if name.startswith("kept_")]
    logits, *kept = run(session, arrays["images"], recipe.graph.static_batch)
    gates, hidden = gates_in_force(recipe, arrays["logits"], geometry), decides_unseen(recipe)

    def broken_by(result: Result, reference: dict[str, NDArray[Any]], alone: bool = False) -> list[str]:
        if recipe.precision.mode != "fp32":
            reference = reference | follow(oracle, reference["images"], result.kept, reference)
        compared.append(compare(result, reference, blocks, gates, hidden, heads))
        found = [gate for gate in failures(compared[-1], gates) if gate.name in EXPORT_GATES]
        if alone:  # whether any decision could have failed, and anything was compared, is asked of all images together
            nothing = not compared[-1].logits_compared
            found = [gate for gate in found if (gate.seen if gate.name == "decisions" else not nothing)]
        return [gate.text() for gate in found]

    compared: list[Comparison] = []
    broken = broken_by(Result(logits, kept), arrays)
    if recipe.precision.mode == "fp32":
        _check_alone(session, arrays["images"], logits, recipe)
    else:  # between roundings alone and in a batch a decision may flip within its margin: both are compared with the reference
        wanted = left = min(ALONE, len(logits)) if _alone_is_alike(recipe) else 0
        for number in range(len(logits)):
            if not left:
                break
            one = {name: value[number : number + 1] for name, value in arrays.items()}
            own, *lists = run(session, one["images"], recipe.graph.static_batch)
            broken += [f"image {number} alone: {text}" for text in broken_by(Result(own, lists), one, True)]
            left -= bool(compared[-1].logits_compared)  # a legal flip that no reference follows leaves nothing to compare
        if wanted and left == wanted:
            broken.append("no image alone was left to compare")
    comparison = compared[0]
    layers: dict[str, Any] = {}
    if recipe.precision.quantised:
        pixels = arrays["images"][first_rows(arrays["images"], recipe.graph.static_batch)]
        layers, differing = check_layers(model, oracle.dense, {session.get_inputs()[0].name: pixels})
        broken += differing
    if broken:
        raise ExportError(
            330,
            "the rewritten graph and the PyTorch reference disagree",
            cause="; ".join(broken),
            next_step="report the model and recipe with this message",
        )
    return comparison.document() | {"pads_exercised": _has_pads(kept)} | layers


def _has_pads(kept: list[NDArray[Any]]) -> bool:
    """Whether images kept different numbers anywhere, so that slots were pads and what hides them was tried."""
    return any(bool((rows < 0).any()) for rows in kept)


def _alone_is_alike(recipe: Recipe) -> bool:
    """Whether an image alone must give what it gives in a batch, and a batch is more than it."""
    return recipe.graph.static_batch != 1 and getattr(recipe.prune, "infer", "") != "batch_topk"


def _check_alone(session: Any, pixels: NDArray[np.float32], logits: NDArray[Any], recipe: Recipe) -> None:
    """The first images alone must give what they gave in a batch.

    Raises:
        ExportError: VP330.
    """
    if not _alone_is_alike(recipe):
        return
    for number in range(min(ALONE, len(pixels))):
        alone = run(session, pixels[number : number + 1], recipe.graph.static_batch)[0]
        difference = float(np.abs(alone[0] - logits[number]).max())
        if not difference <= BATCH_LIMIT * max(1.0, float(np.abs(logits[number]).max())):
            raise ExportError(
                330,
                "the result for an image depends on its batch mates",
                cause=f"alone and in a batch its logits differ by {difference:.3g}",
                next_step="report the model and recipe with this message",
            )


def run(session: Any, pixels: NDArray[np.float32], static: int | None, wanted: list[str] | None = None) -> list[NDArray[Any]]:
    """Answers and kept patches of all images, in pieces of the batch that the graph takes.

    Answers are logits, or features side by side; wanted: names of other outputs, which then are all that is answered.
    """
    from vitprune.backends.onnxruntime import _stack, answer_names

    heads, lists = answer_names(session) if wanted is None else (wanted, [])
    name, wanted = session.get_inputs()[0].name, [*heads, *lists]
    size = static or 8
    parts = []
    for start in range(0, len(pixels), size):
        piece = pixels[start : start + size]
        short = size - len(piece) if static else 0
        fed = np.concatenate([piece, np.repeat(piece[-1:], short, axis=0)]) if short else piece
        parts.append([value[: len(piece)] for value in session.run(wanted, {name: fed})])
    answers = [np.concatenate([part[number] for part in parts]) for number in range(len(heads))]
    return [joined(answers), *(_stack([part[number] for part in parts]) for number in range(len(heads), len(wanted)))]
