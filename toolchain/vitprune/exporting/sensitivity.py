"""What each layer alone costs in int8 or FP8, and which to leave out so that the gates hold; measured with the PyTorch reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitprune.errors import RecipeError
from vitprune.graph.precision.passes import quantised_layers
from vitprune.recipe import PrecisionSection, Recipe
from vitprune.support.precision import layer_names

if TYPE_CHECKING:
    from vitprune.bundle import Bundle

BATCH = 8
Report = Callable[[str], None]
Results = tuple[NDArray[Any], list[NDArray[Any]]]


@dataclass(frozen=True)
class Cost:
    """Of one layer in the type, the others in float32.

    error: RMS of the logits' change over RMS of the logits. top1_changed, images_deciding_otherwise: images with another top-1, and with
    another set of patches kept.
    """

    layer: str
    error: float
    top1_changed: int
    images_deciding_otherwise: int


@dataclass(frozen=True)
class Sensitivity:
    """What was measured.

    costs: by layer, the dearest first. whole: of all layers together. exclude: layers without which the gate on agreement holds, in
    the order they were taken; met: whether it then does. agreement: with them left out. images: how many were measured on.
    """

    mode: str
    images: int
    costs: list[Cost]
    whole: Cost
    exclude: list[str]
    met: bool
    agreement: float

    def document(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


def measure(module: Any, recipe: Recipe, pixels: NDArray[np.float32], report: Report = lambda text: None) -> Sensitivity:
    """Run the reference once per layer.

    Args:
        module: the dense model. recipe: in int8 or fp8, with ranges. pixels: [n,C,H,W].
    """
    depth = len(module.blocks)
    layers = [name for name in layer_names(depth) if name in quantised_layers(depth, recipe.precision)]
    full = _run(module, recipe.with_("precision.mode", "fp32"), pixels)
    exact = {**recipe.precision.brief(), "rest": "fp32"}
    costs = []
    for number, layer in enumerate(layers):
        report(f"{layer} alone in {recipe.precision.mode} ({number + 1} of {len(layers)})")
        others = [name for name in layer_names(depth) if name != layer]
        costs.append(_cost(layer, full, _run(module, recipe.with_("precision", {**exact, "exclude": others}), pixels)))
    costs.sort(key=lambda one: -one.error)
    whole = _cost("all", full, _run(module, recipe, pixels))
    limit = recipe.precision.agreement if recipe.precision.agreement is not None else 0.0
    exclude, agreement = _search(module, recipe, pixels, full, [one.layer for one in costs], limit, report)
    return Sensitivity(recipe.precision.mode, len(pixels), costs, whole, exclude, agreement >= limit, agreement)


def of_bundle(
    bundle: Bundle, data: str | Path | None, samples: int, weights: str | None, report: Report = lambda text: None
) -> Sensitivity:
    """The sensitivity of a bundle in int8 or FP8, with its ranges.

    Args:
        bundle: of a single model that can be made again. data: images. samples: at most so many. weights: a checkpoint of the model.

    Raises:
        RecipeError: VP117 no images, VP134 the bundle is in another type. LoadError: VP613 the model cannot be made again, VP62x data.
    """
    from vitprune.backends.torch import dense_module
    from vitprune.data.images import for_bundle

    mode = bundle.recipe.precision.mode
    if not bundle.recipe.precision.quantised:
        raise RecipeError(
            134,
            "the sensitivity of layers is that of an int8 or fp8 bundle",
            cause=f"this one is in {mode}, and has no ranges",
            next_step="vitprune export MODEL -r RECIPE -o BUNDLE --set precision.mode=int8 --data DIR",
        )
    if data is None:
        raise RecipeError(
            117,
            "the sensitivity of layers needs images",
            cause="what a layer costs is measured on them",
            next_step="--data DIR with images like those the model will see",
        )
    pixels = for_bundle(bundle, Path(data), samples).pixels
    return measure(dense_module(bundle, weights), bundle.recipe, pixels, report)


def settle(
    module: Any, recipe: Recipe, images: Callable[[int], NDArray[np.float32]] | None, report: Report = lambda text: None
) -> Recipe:
    """The recipe with what `auto_exclude` asks for; unchanged where it does not ask.

    Raises:
        RecipeError: VP117 without images, VP133 when the gate does not hold even with all layers but one left out.
    """
    if not recipe.precision.auto_exclude:
        return recipe
    if images is None:
        raise RecipeError(
            117, "--auto-exclude needs calibration images", cause="what a layer costs is measured on images",
            next_step="--data DIR with images like those the model will see",
        )  # fmt: skip
    found = measure(module, recipe, images(recipe.precision.images), report)
    if not found.met:
        raise RecipeError(
            133,
            f"no choice of layers makes {recipe.precision.mode} agree with fp32",
            cause=f"with {len(found.exclude)} layers left out the top-1 agrees on {found.agreement:.1%} of {found.images} images, "
            f"precision.agreement asks for {recipe.precision.agreement:.1%}",
            next_step="--set precision.mode=fp16, or another precision.calibration, or lower precision.agreement",
        )
    return recipe.with_("precision", without(recipe.precision, found.exclude).brief())


def without(precision: PrecisionSection, layers: list[str]) -> PrecisionSection:
    """The section with more layers left out, and with the ranges and factors of those that are left."""
    left = {key: {k: v for k, v in getattr(precision, key).items() if k not in layers} for key in ("ranges", "smoothing")}
    return precision.model_copy(update={"exclude": [*precision.exclude, *layers], "auto_exclude": False, **left})


def _search(
    module: Any, recipe: Recipe, pixels: NDArray[np.float32], full: Results, layers: list[str], limit: float, report: Report
) -> tuple[list[str], float]:  # fmt: skip
    """Leave out the dearest layers, twice as many at a time, then as few as still do; agreement of what was found."""
    tried: dict[int, float] = {}

    def agreement(count: int) -> float:
        if count not in tried:
            report(f"leaving out {count} layers")
            section = without(recipe.precision, layers[:count])
            tried[count] = float(
                (full[0].argmax(1) == _run(module, recipe.with_("precision", section.brief()), pixels)[0].argmax(1)).mean()
            )
        return tried[count]

    high = 0
    while agreement(high) < limit and high < len(layers) - 1:
        high = min(max(1, 2 * high), len(layers) - 1)
    low = high // 2 if high > 1 else 0
    while high - low > 1 and agreement(high) >= limit:
        middle = (low + high) // 2
        low, high = (low, middle) if agreement(middle) >= limit else (middle, high)
    return layers[:high], agreement(high)


def _run(module: Any, recipe: Recipe, pixels: NDArray[np.float32]) -> Results:
    """Logits [n,classes] and, per site, which patches were kept, bool [n,P]."""
    import torch

    from vitprune.vit.pruned import PrunedViT

    oracle = PrunedViT(module, recipe).eval()
    logits: list[Any] = []
    kept: list[list[NDArray[Any]]] = []
    with torch.inference_mode():
        for start in range(0, len(pixels), BATCH):
            logits.append(oracle(torch.from_numpy(pixels[start : start + BATCH])).numpy())
            kept.append([_members(rows.numpy(), oracle.geometry.patches) for rows in oracle.kept])
    return np.concatenate(logits), [np.concatenate(parts) for parts in zip(*kept, strict=True)]


def _members(lists: NDArray[np.int64], patches: int) -> NDArray[np.bool_]:
    found = np.zeros((len(lists), patches + 1), bool)
    np.put_along_axis(found, np.where(lists < 0, patches, lists), True, axis=1)
    return found[:, :patches]


def _cost(layer: str, full: Results, other: Results) -> Cost:
    apart = np.zeros(len(full[0]), bool)
    for one, two in zip(full[1], other[1], strict=True):
        apart |= (one != two).any(axis=1)
    error = float(np.sqrt(((other[0] - full[0]) ** 2).mean() / max(float((full[0] ** 2).mean()), 1e-30)))
    return Cost(layer, error, int((full[0].argmax(1) != other[0].argmax(1)).sum()), int(apart.sum()))
