"""rewrite: any dense ViT ONNX to a bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitprune import methods
from vitprune.backends.onnxruntime import make_session
from vitprune.bundle import Bundle
from vitprune.data.images import Images
from vitprune.data.preprocessing import of_graph, require_known
from vitprune.errors import ExportError
from vitprune.exporting import parity, precision, ranges, sensitivity
from vitprune.exporting.dense import read_onnx
from vitprune.exporting.features import features_notes, require_free
from vitprune.exporting.given_front import check_front, described_by
from vitprune.exporting.given_half import compare_given
from vitprune.exporting.given_quantised import refuse_quantised
from vitprune.exporting.initializers import check_initializers
from vitprune.exporting.writing import write_bundle
from vitprune.graph import surgery
from vitprune.graph.anatomy.find import Anatomy
from vitprune.graph.normal.front import taken_off
from vitprune.graph.reading import Source
from vitprune.graph.widening import widened
from vitprune.recipe import Recipe
from vitprune.support import onnx_weights, temporary
from vitprune.support.onnx_types import HALF
from vitprune.support.onnx_weights import Spill
from vitprune.vit.loading import require_torch


def rewrite(
    path: Path, recipe: Recipe, output: Path, *, data: str | Path | None, preprocessing: str | None, force: bool,
    report: Callable[[str], None],
) -> Bundle:  # fmt: skip
    """Apply a recipe to a dense ViT ONNX from any exporter.

    Three computations must agree before anything is written: the dense graph, the rewritten graph with nothing pruned, and, with
    pruning on, the rewritten graph against the PyTorch reference built from the dense graph (`vitprune.exporting.graph_vit`).

    Raises:
        LoadError: VP604 the file is missing or not ONNX. ExportError: VP32x, VP33x the graph is not understood or the computations
            differ. RecipeError: as for `export`. TargetError: VP201 PyTorch is not installed.
    """
    require_torch("rewrite")
    report("reading the dense graph")
    dense = read_onnx(path, onnx_weights.ASIDE)
    check_initializers(dense, path.name)
    size, kind = onnx_weights.total(dense), _kind(dense, recipe)
    if kind != "fp32" or size <= onnx_weights.ASIDE:
        if size > onnx_weights.MOST_BYTES:
            why, next_step = (
                f"in {kind} they would all be made anew, in one message",
                "give the graph in float32, and fp32 as its precision.mode",
            )
            raise onnx_weights.too_large(size, f"'{path}'", why, next_step)
        dense = read_onnx(path) if onnx_weights.any_elsewhere(dense) else dense
        return _rewritten(path, dense, None, recipe, output, data, preprocessing, force, report)
    with temporary.folder(output) as aside:
        spill = Spill(aside / "weights")
        dense = spill.take(dense)
        return _rewritten(path, dense, spill, recipe, output, data, preprocessing, force, report)


def _kind(dense: onnx.ModelProto, recipe: Recipe) -> str:
    """The type that makes weights anew: the graph's own where it is a half type, else the recipe's."""
    own = {HALF[tensor.data_type] for tensor in dense.graph.initializer if tensor.data_type in HALF}
    return min(own) if own else recipe.precision.mode


def _rewritten(
    path: Path, dense: onnx.ModelProto, spill: Spill | None, recipe: Recipe, output: Path, data: str | Path | None,
    preprocessing: str | None, force: bool, report: Callable[[str], None],
) -> Bundle:  # fmt: skip
    """`rewrite` of a graph that was read; spill: where new weights go that a message would not hold."""
    refuse_quantised(dense, recipe)
    recipe = ranges.with_opset(recipe)
    given, full = dense, widened(dense)
    dense, front = taken_off(full)
    report("rewriting the graph")
    require_free(recipe)
    source = Source(dense, spill)
    pruned, anatomy, notes = surgery.rewrite(source, precision.unquantised(recipe))
    taken = source.taken(recipe)
    recipe = taken.recipe
    described = of_graph(anatomy.image_shape, recipe.model, preprocessing)
    described = described if front is None else described_by(front, described)
    if recipe.validation.gates.of_accuracy:
        require_known(described, "the recipe gates accuracy (validate.gates)")
    values = sum(int(np.prod(shape)) for shape in anatomy.output_shapes)
    inputs = parity.samples(recipe, described, data, anatomy.classes or None, values)
    settled, beyond = precision.settle(source, recipe, None, inputs.pixels)
    if settled.precision.quantised:
        report("finding ranges on the calibration images")
        images = parity.calibration(described, data, anatomy.classes or None)
        settled = ranges.settle(source, settled, None, images)
        if settled.precision.auto_exclude:
            settled = sensitivity.settle(_dense_vit(taken.model, anatomy), settled, images, report)
    if settled is not recipe or settled.precision.quantised:  # the first graph was read in fp32
        recipe = settled
        pruned, anatomy, notes = surgery.rewrite(source, recipe)
    report("checking the canonical graph against the dense one")
    batch, names = recipe.graph.static_batch, [output.name for output in taken.model.graph.output]
    dense_logits = parity.run(make_session(dense, spin=False), inputs.pixels, batch, names)[0]
    canonical = parity.run(make_session(surgery.canonical(source, recipe), spin=False), inputs.pixels, batch)[0]
    difference = float(np.abs(canonical - dense_logits).max())
    limit = 1e-5 * max(1.0, float(np.abs(dense_logits).max()))
    if not difference <= limit:
        raise ExportError(
            331,
            "the rewritten graph does not reproduce the dense one",
            cause=f"with nothing pruned the logits differ by {difference:.3g}, allowed is {limit:.3g}",
            next_step="report the dense ONNX file with this message",
        )
    check: dict[str, Any] = {"canonical_max_abs": difference}
    if front is not None:
        check["front_max_abs"] = check_front(full, dense, front, inputs.pixels, batch, names)
        notes["warnings"] = [*notes.get("warnings", []), f"the bundle takes preprocessed pixels; the graph took {front.text()}"]
    elif given is not full:
        notes["given_in"] = check["given_in"] = compare_given(given, dense_logits, inputs.pixels, batch, names)
    if surgery.is_plain(taken.model):
        report("checking against the PyTorch reference built from the dense graph")
        oracle = _oracle(taken.model, anatomy, recipe, spill)
        arrays = parity.reference_arrays(oracle, inputs, dense_logits, batch)
        geometry, oracle = oracle.geometry, None if recipe.precision.mode == "fp32" else oracle  # it holds all the weights
        check |= parity.check(pruned, arrays, recipe, geometry, oracle)
    else:
        # A family with convolutional projections: its reference needs the module, which a graph does not give back.
        arrays = _own_results(pruned, inputs, dense_logits, recipe, anatomy)
        check["reference"] = "none: the graph of this family was compared with the dense graph only, nothing pruned"
    arrays |= {} if inputs.labels is None or recipe.output.features else {"labels": inputs.labels}
    sizes = surgery.geometry(anatomy)
    sites = methods.get(recipe.prune.method).sites(recipe.prune, sizes)
    judge = "reference" if surgery.is_plain(taken.model) else "graph"  # whose results the samples hold
    origin = {"source": {"kind": "onnx", "file": path.name, "samples": judge}, "geometry": asdict(sizes)}
    notes = precision.noted(notes, beyond)
    notes |= features_notes(recipe) | {
        "check": check,
        "samples": inputs.origin,
        "dense_nodes": len(dense.graph.node),
        "nodes": len(pruned.graph.node),
    }
    return write_bundle(
        output,
        force,
        pruned,
        anatomy,
        recipe,
        recipe.model.name or path.stem,
        origin,
        inputs.naming(described),
        sites,
        arrays,
        notes,
        source,
    )


def _oracle(dense: onnx.ModelProto, anatomy: Anatomy, recipe: Recipe, spill: Spill | None) -> Any:
    from vitprune.vit.pruned import PrunedViT

    return PrunedViT(_dense_vit(dense, anatomy, recipe.precision.mode != "fp32", spill), recipe).eval()


def _dense_vit(dense: onnx.ModelProto, anatomy: Anatomy, split: bool = True, spill: Spill | None = None) -> Any:
    from vitprune.exporting.graph_vit import GraphViT

    return GraphViT(dense, anatomy, split, spill)


def _own_results(
    pruned: onnx.ModelProto, inputs: Images, dense_logits: NDArray[Any], recipe: Recipe, anatomy: Anatomy
) -> dict[str, NDArray[Any]]:
    """ONNX Runtime's own results of the pruned graph, for families without a reference from the graph."""
    logits, *kept = parity.run(make_session(pruned, spin=False), inputs.pixels, recipe.graph.static_batch)
    sites = methods.get(recipe.prune.method).sites(recipe.prune, surgery.geometry(anatomy))
    arrays: dict[str, NDArray[Any]] = {"images": inputs.pixels, "logits": logits, "dense_logits": dense_logits}
    return arrays | {f"kept_{site.block}": rows for site, rows in zip(sites, kept, strict=True)}
