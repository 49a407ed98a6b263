"""export: a timm model to a bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vitprune.bundle import Bundle
from vitprune.exporting import parity, precision, ranges, sensitivity
from vitprune.exporting.dense import dense_onnx
from vitprune.exporting.features import features_notes
from vitprune.exporting.writing import write_bundle
from vitprune.graph import surgery
from vitprune.graph.reading import Source
from vitprune.recipe import Recipe
from vitprune.vit.features import dense_answers
from vitprune.vit.loading import LoadedModel, from_module, load


def export(
    module_or_name: Any, recipe: Recipe, output: Path, *, pretrained: bool, seed: int, weights: str | None,
    data: str | Path | None, force: bool, report: Callable[[str], None],
) -> Bundle:  # fmt: skip
    """Export a single model; arguments and errors as `vitprune.pipelines.export`."""
    report("loading the model")
    model = _loaded(module_or_name, recipe, pretrained, seed, weights)
    from vitprune.vit.pruned import PrunedViT

    recipe = ranges.with_opset(recipe)
    oracle = PrunedViT(model.module, precision.unquantised(recipe)).eval()
    dense_module = dense_answers(model.module, recipe.output)
    values = oracle.geometry.tokens * oracle.geometry.width * len(oracle.taken)
    classes = oracle.geometry.classes or None
    inputs = parity.samples(recipe, model.preprocessing, data, classes, values)
    images = parity.calibration(model.preprocessing, data, classes)
    ranges.check_early(recipe.precision, oracle.geometry.depth, images)
    report("exporting the dense model to ONNX")
    taken: list[str] = []  # from the cache
    dense = Source(dense_onnx(dense_module, model.image_shape, recipe, taken.append))
    settled, beyond = precision.settle(dense, recipe, oracle.geometry.has_cls, inputs.pixels)
    if settled.precision.quantised:
        report("finding ranges on the calibration images")
        settled = ranges.settle(dense, settled, oracle.geometry.has_cls, images)
        settled = sensitivity.settle(model.module, settled, images, report)
    if settled is not recipe or settled.precision.quantised:  # the first reference was made in fp32
        recipe, oracle = settled, PrunedViT(model.module, settled).eval()
    report("rewriting the graph")
    pruned, anatomy, notes = surgery.rewrite(dense, recipe, has_cls=oracle.geometry.has_cls)
    report("checking against the PyTorch reference")
    dense_logits = parity.module_logits(dense_module, inputs.pixels)
    arrays = parity.reference_arrays(oracle, inputs, dense_logits, recipe.graph.static_batch)
    check = parity.check(pruned, arrays, recipe, oracle.geometry, oracle)
    source = {"source": model.source, "geometry": asdict(oracle.geometry)}
    arrays |= {} if inputs.labels is None or recipe.output.features else {"labels": inputs.labels}
    notes = precision.noted(notes, beyond)
    notes |= features_notes(recipe) | {
        "check": check,
        "samples": inputs.origin,
        "dense_nodes": len(dense.model.graph.node),
        "nodes": len(pruned.graph.node),
    }
    if taken:
        notes["dense_export"] = taken[0]
    if recipe.graph.shapes == "padded" and (advice := oracle.method.padded_advice(recipe.prune)):
        notes["warnings"] = [*notes.get("warnings", []), advice]
    return write_bundle(
        output,
        force,
        pruned,
        anatomy,
        recipe,
        model.name,
        source,
        inputs.naming(model.preprocessing),
        oracle.sites,
        arrays,
        notes,
        dense,
    )


def _loaded(module_or_name: Any, recipe: Recipe, pretrained: bool, seed: int, weights: str | None) -> LoadedModel:
    if module_or_name is not None and not isinstance(module_or_name, str):
        return from_module(module_or_name, recipe.model)
    section = recipe.model
    if module_or_name and module_or_name != section.name:
        section = section.model_copy(update={"name": module_or_name})
    return load(section, pretrained=pretrained, seed=seed, weights=weights)
