"""Before a graph is quantised: the range of every layer's input, and the factors that even out its channels, from calibration images.

Ranges come from ONNX Runtime's calibrators, run on the pruned float32 graph after smoothing; both go into the recipe, so that the same
recipe gives the same bundle without images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitprune.backends.onnxruntime import make_session
from vitprune.errors import RecipeError
from vitprune.exporting.precision import Feeds, feeds_of
from vitprune.graph import surgery
from vitprune.graph.precision import passes, quantising, smoothing
from vitprune.graph.reading import Source
from vitprune.recipe import PrecisionSection, Recipe
from vitprune.support.precision import exponent_text, layer_names

FEWEST = 16
BINS = 1024


def with_opset(recipe: Recipe) -> Recipe:
    """The recipe with an opset that has its type."""
    needed = quantising.OPSET.get(recipe.precision.mode, 0)
    return recipe if recipe.graph.opset >= needed else recipe.with_("graph.opset", needed)


def settle(
    dense: onnx.ModelProto | Source, recipe: Recipe, has_cls: bool | None, images: Callable[[int], NDArray[np.float32]] | None
) -> Recipe:
    """The recipe with ranges and factors for every layer that takes int8 or FP8.

    Args:
        dense: the dense graph. recipe: what to insert. has_cls: as for `surgery.rewrite`. images: gives at most so many preprocessed
            images [n,C,H,W]; None where there are none.

    Returns:
        The recipe, unchanged where nothing is quantised or it has all ranges.

    Raises:
        RecipeError: VP117 no images, VP136, VP127 images of no use, VP135 no range, VP129 nothing is left to quantise.
    """
    precision = recipe.precision
    if not precision.quantised:
        return recipe
    model, plan = surgery.untyped(dense, recipe, has_cls)
    pixels = images_for(precision, plan.quantised, images)
    if pixels is None:
        return recipe
    feeds = feeds_of(pixels, model.graph.input[0].name, recipe.graph.static_batch)
    return recipe.with_("precision", found(model, plan, precision, feeds).brief())


def check_early(precision: PrecisionSection, depth: int, images: Callable[[int], NDArray[np.float32]] | None) -> None:
    """What `settle` would refuse, before anything that takes long; errors as there, and VP113."""
    if precision.quantised:
        names = layer_names(depth)
        passes.check_patterns(names, precision.keep_fp32)
        passes.check_patterns(names, precision.exclude, "exclude")
        images_for(precision, passes.quantised_layers(depth, precision), images)


def images_for(
    precision: PrecisionSection, layers: frozenset[str], images: Callable[[int], NDArray[np.float32]] | None
) -> NDArray[np.float32] | None:
    """The images to find the ranges of these layers on, [n,C,H,W]; None where the recipe has them all.

    Raises:
        RecipeError: VP117 no images, VP136, VP127 images of no use, VP129 nothing is left to quantise.
    """
    if not layers:
        raise RecipeError(
            129,
            f"nothing is left to be computed in {precision.mode}",
            cause="precision.keep_fp32 and precision.exclude name every layer",
            next_step=f"--set precision.mode={precision.rest}",
        )
    if layers <= precision.ranges.keys():
        return None
    if images is None:
        raise RecipeError(
            117,
            f"{precision.mode} needs calibration images",
            cause="the ranges of its layers' inputs are found on images, and neither --data nor precision.ranges is given",
            next_step="--data DIR with images like those the model will see",
        )
    pixels = images(precision.images)
    check_images(pixels)
    return pixels


def check_images(pixels: NDArray[np.float32]) -> None:
    """Images that say something about ranges.

    Raises:
        RecipeError: VP136 too few, VP127 they are constant.
    """
    if len(pixels) < FEWEST:
        raise RecipeError(
            136,
            f"{len(pixels)} calibration images are too few",
            cause=f"ranges of so few are those of these images; at least {FEWEST} are asked for",
            next_step="--data DIR with more images; 128 are usual",
        )
    flat = pixels.reshape(len(pixels), -1)
    if constant := int((flat.max(axis=1) == flat.min(axis=1)).sum()):
        raise RecipeError(
            127,
            f"{constant} of {len(pixels)} calibration images have one colour",
            cause="what a model computes of them says nothing of what it will see",
            next_step="--data DIR with images like those the model will see",
        )


def found(
    model: onnx.ModelProto, plan: passes.Plan, precision: PrecisionSection, feeds: Sequence[Feeds], owner: str = ""
) -> PrecisionSection:
    """The section with ranges and factors of one graph.

    Args:
        model: pruned, float32. plan: of its types. feeds: calibration inputs. owner: what stands before its layers' names in messages.

    Raises:
        RecipeError: VP135 an input is zero on all images, or not finite.
    """
    letters = _factors(model, plan, precision, feeds) if precision.smooth else {}
    maps = plan.maps(model)
    even = smoothing.fold(model, smoothing.sites(model, maps), letters)
    names = list(dict.fromkeys(one.data for one in maps))
    by_tensor = largest(even, names, precision, feeds)
    ranges: dict[str, float] = {}
    for one in maps:
        ranges[one.layer] = max(ranges.get(one.layer, 0.0), by_tensor[one.data])
    wrong = [layer for layer, value in ranges.items() if not (np.isfinite(value) and value > 0)]
    if wrong:
        raise RecipeError(
            135,
            f"no range for {owner}{wrong[0]}",
            cause=f"on the calibration images the largest number that goes in is {ranges[wrong[0]]:g}",
            next_step=f"--set 'precision.exclude=[{owner}{wrong[0]}]', or other images",
        )
    return precision.model_copy(update={"ranges": ranges, "smoothing": letters})


def _factors(
    model: onnx.ModelProto, plan: passes.Plan, precision: PrecisionSection, feeds: Sequence[Feeds]
) -> dict[str, str]:  # fmt: skip
    """Letters of the layers whose channels are uneven."""
    places = smoothing.sites(model, plan.maps(model))
    probed, outputs = smoothing.probed(model, places)
    session = make_session(probed.SerializeToString(), spin=False)
    most: dict[str, NDArray[Any]] = {}
    for feed in feeds:
        for (_, layer), seen in zip(outputs.items(), session.run(list(outputs), feed), strict=True):
            most[layer] = np.maximum(most[layer], seen) if layer in most else seen
    values = {
        site.layer: smoothing.factors(most[site.layer], smoothing.row_maxima(model, site), precision.strength) for site in places
    }
    return {layer: exponent_text(one) for layer, one in values.items() if any(one)}


class _Reader:
    """What ONNX Runtime's calibrators read from."""

    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self.left: Iterator[Feeds] = iter(feeds)

    def get_next(self) -> Feeds | None:
        """The next inputs, None behind the last."""
        return next(self.left, None)


def largest(
    model: onnx.ModelProto, names: Sequence[str], precision: PrecisionSection, feeds: Sequence[Feeds]
) -> dict[str, float]:
    """End of the symmetric range of these tensors, by the recipe's calibrator of ONNX Runtime.

    Args:
        model: float32. names: float tensors of it. precision: `calibration`, `percentile`. feeds: inputs.
    """
    from onnxruntime.quantization import calibrate

    kinds = {
        "max": calibrate.MinMaxCalibrater,
        "entropy": calibrate.EntropyCalibrater,
        "percentile": calibrate.PercentileCalibrater,
    }
    chosen: Any = kinds[precision.calibration]
    options: dict[str, Any] = {"symmetric": True}
    if precision.calibration != "max":
        options["num_bins"] = BINS
    if precision.calibration == "percentile":
        options["percentile"] = precision.percentile

    infos = {name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names}

    def select(self: Any, model: onnx.ModelProto) -> tuple[set[str], dict[str, onnx.ValueInfoProto]]:
        return set(names), infos

    # Its own choice is by operator; asked for are single tensors, whose shapes need not be inferred.
    calibrator: Any = type("Chosen", (chosen,), {"select_tensors_to_calibrate": select})
    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    del typed.graph.value_info[:]
    typed.graph.value_info.extend(infos.values())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        onnx.save(typed, str(file))
        made = calibrator(str(file), augmented_model_path=str(Path(folder) / "augmented.onnx"), **options)
        made.augment_graph()
        made.create_inference_session()
        for feed in feeds:  # one by one: histograms keep all values of what they are given at once
            made.collect_data(_Reader([feed]))
        data = made.compute_data().data
    return {name: float(np.abs(np.asarray(data[name].range_value, np.float64)).max()) for name in names}
