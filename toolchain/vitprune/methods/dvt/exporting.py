"""export of a cascade: three graphs, samples of every exit, and the check against the PyTorch reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitprune.backends.onnxruntime import make_session
from vitprune.bundle import Bundle, folder_in_place, open_bundle, seal
from vitprune.bundle_parts.manifest import Manifest
from vitprune.errors import ExportError
from vitprune.exporting import parity
from vitprune.exporting.layers import check_layers, first_rows
from vitprune.exporting.precision import Feeds, noted
from vitprune.exporting.ranges import with_opset
from vitprune.exporting.writing import describe_io
from vitprune.graph.lowering.rounding import emulated
from vitprune.graph.precision import audit
from vitprune.methods.base import Geometry, keys_of
from vitprune.methods.dvt import ranges
from vitprune.methods.dvt.cost import embed_macs, exit_costs
from vitprune.methods.dvt.graphs import dense_graphs, member_graphs
from vitprune.methods.dvt.host import Arrays, Member, all_exits, in_fixed_batches, member_file, torch_members
from vitprune.methods.dvt.keys import Params
from vitprune.methods.dvt.layers import of_member, prefix
from vitprune.methods.dvt.members import load
from vitprune.methods.dvt.precision import MemberLayers, in_precision
from vitprune.methods.dvt.single import NAME as SINGLE
from vitprune.methods.dvt.single import single_graph
from vitprune.methods.dvt.validating import compare, gates_of, reference_arrays
from vitprune.recipe import Recipe
from vitprune.support import json_text
from vitprune.vit.loading import LoadedModel


def export(
    module_or_name: Any, recipe: Recipe, output: Path, *, pretrained: bool, seed: int, weights: str | None,
    data: str | Path | None, force: bool, report: Callable[[str], None],
) -> Bundle:  # fmt: skip
    """Export a cascade to a bundle; arguments and errors as `vitprune.export`.

    Raises:
        ExportError: VP30x the model, VP314 not a DeiT or T2T-ViT, VP32x the graph, VP330 graphs and reference disagree. RecipeError: VP15x,
            and what `ranges.settle` and `ranges.check_early` raise.
    """
    report("loading the model")
    model = load(module_or_name, recipe, pretrained=pretrained, seed=seed, weights=weights)
    recipe, classes = with_opset(recipe), int(model.module.shape.classes)
    inputs = parity.samples(recipe, model.preprocessing, data, classes)
    images = parity.calibration(model.preprocessing, data, classes)
    ranges.check_early(recipe.precision, model.module.shape.depth, images)
    model = replace(model, preprocessing=inputs.naming(model.preprocessing))
    dense = dense_graphs(model.module, recipe, report)
    beyond: dict[str, float] = {}
    if recipe.precision.mode != "fp32":
        report("looking for overflow and ranges")
        recipe, beyond = ranges.settle(model.module, recipe, dense, inputs.pixels, images)
    graphs = member_graphs(model.module, recipe, report, dense)
    report("checking against the PyTorch reference")
    typed = in_precision(model.module, recipe)
    arrays = reference_arrays(torch_members(typed), inputs, _params(recipe).thresholds)
    files = {member_file(number): graph for number, graph in enumerate(graphs, start=1)}
    check = _check(list(files.values()), arrays, recipe) | _check_layers(graphs, typed, arrays, recipe)
    if _params(recipe).single_graph:
        files[SINGLE] = single_graph(graphs, _params(recipe).thresholds)
        plain = single_graph([emulated(graph) for graph in graphs], _params(recipe).thresholds)
        check |= _check_single(plain, arrays, recipe)
    notes = {
        "check": check, "samples": inputs.origin, "nodes": sum(len(graph.graph.node) for graph in files.values()),
        "warnings": [] if model.source.get("weights") != "random" else ["random weights: confidences and exits mean nothing"],
    }  # fmt: skip
    if recipe.precision.mode != "fp32":
        notes = noted(notes | {"precision": _types(graphs, recipe, model.module.shape.depth)}, beyond)
    return _write(output, force, files, model, recipe, arrays, notes)


def _params(recipe: Recipe) -> Params:
    return keys_of(recipe.prune, Params)


def geometry_of(shape: Any, grid: int) -> Geometry:
    """Sizes of the last member."""
    image = (shape.channels, shape.image, shape.image)
    return Geometry(
        depth=shape.depth, patches=grid * grid, prefix=1, width=shape.width, heads=shape.heads, mlp_hidden=shape.mlp_hidden,
        embed_macs=embed_macs(shape.kind, image, grid, shape.width), classes=shape.classes,
    )  # fmt: skip


def _members(graphs: list[onnx.ModelProto], static: int | None) -> list[Member]:
    def wrap(graph: onnx.ModelProto) -> Member:
        session = make_session(emulated(graph).SerializeToString(), spin=False)
        names = [value.name for value in session.get_outputs()]

        def run(feeds: Arrays) -> Arrays:
            return dict(zip(names, session.run(None, dict(feeds)), strict=True))

        return in_fixed_batches(run, static) if static else run

    return [wrap(graph) for graph in graphs]


def _check(graphs: list[onnx.ModelProto], arrays: dict[str, NDArray[Any]], recipe: Recipe) -> dict[str, Any]:
    """Run every member on the samples and compare all exits.

    Raises:
        ExportError: VP330 when a gate of the recipe fails already here.
    """
    found = all_exits(_members(graphs, recipe.graph.static_batch), arrays["images"])
    in_force = recipe.gates(float(np.abs(arrays["logits"]).max()))
    comparison = compare(found, arrays, _params(recipe).thresholds, in_force)
    gates = gates_of(comparison, in_force)
    _refuse([gate.text() for gate in gates if not gate.passed and gate.name in ("logits_max_abs", "decisions")])
    return comparison.document()


def _check_layers(
    graphs: Sequence[onnx.ModelProto], typed: Any, arrays: dict[str, NDArray[Any]], recipe: Recipe
) -> dict[str, Any]:
    """Every quantised layer of every member alone.

    Raises:
        ExportError: VP330 one differs from the reference's.
    """
    if not recipe.precision.quantised:
        return {}
    rows = first_rows(arrays["images"], recipe.graph.static_batch)
    feeds: list[Feeds] = [{"image": arrays["images"][rows]}]
    counted, worst = 0, 0.0
    for number, (graph, member) in enumerate(zip(graphs, typed.members, strict=True), start=1):
        layers = MemberLayers(member)
        if layers.quantised:
            found, wrong = check_layers(graph, layers, feeds[0])
            counted, worst = counted + found["layers_compared"], max(worst, found["layers_max_abs"])
            _refuse([f"{prefix(number)}{text}" for text in wrong])
        feeds = ranges.handed_on(emulated(graph), feeds)
    return {"layers_compared": counted, "layers_max_abs": worst}


def _types(graphs: Sequence[onnx.ModelProto], recipe: Recipe, depth: int) -> dict[str, Any]:
    """What the members compute in, for the export report: counts of all together, and member by member."""
    parts = {}
    for number, graph in enumerate(graphs, start=1):
        kept = of_member(recipe.precision, number, depth).keep_fp32
        parts[f"exit{number}"] = audit.report(graph, recipe.precision.mode, tuple(kept))
    layers: Counter[str] = Counter()
    for part in parts.values():
        layers.update(part["layers"])
    return {"mode": recipe.precision.mode, "layers": dict(sorted(layers.items())), "members": parts}


def _check_single(graph: onnx.ModelProto, arrays: dict[str, NDArray[Any]], recipe: Recipe) -> dict[str, Any]:
    """Run the graph of the whole cascade image by image; it must give the logits of the exit it names.

    Raises:
        ExportError: VP330.
    """
    session, gates = make_session(graph.SerializeToString(), spin=False), recipe.gates(float(np.abs(arrays["logits"]).max()))
    worst, differing = 0.0, 0
    for image, pixels in enumerate(arrays["images"]):
        logits, exits = session.run(None, {"image": pixels[None]})
        worst = max(worst, float(np.abs(logits[0] - arrays[f"logits_exit{int(exits[0])}"][image]).max()))
        differing += int(exits[0] != arrays["exits"][image] and arrays["margin"][image] > gates.flip_margin)
    limit = gates.logits_max_abs
    wrong = [f"{differing} exits of {SINGLE} differ"] if differing else []
    _refuse(wrong + ([f"{SINGLE} logits {worst:.3g} (beyond {limit:g})"] if limit is not None and not worst <= limit else []))
    return {"single_graph_max_abs": worst}


def _refuse(broken: list[str]) -> None:
    if broken:
        raise ExportError(
            330,
            "the rewritten graphs and the PyTorch reference disagree",
            cause="; ".join(broken),
            next_step="report the model and recipe with this message",
        )


def _write(
    output: Path, force: bool, files: dict[str, onnx.ModelProto], model: LoadedModel, recipe: Recipe,
    arrays: dict[str, NDArray[Any]], notes: dict[str, Any],
) -> Bundle:  # fmt: skip
    shape, params, source = model.module.shape, _params(recipe), dict(model.source)
    weights = source.get("file") if source["kind"] == "cascade" else None
    section = recipe.model.model_copy(update={"weights": weights, "name": source.get("name") or recipe.model.name})
    stored = recipe.model_copy(update={"model": section})
    geometry = geometry_of(shape, params.grids[-1])
    models = {name: describe_io(graph) for name, graph in files.items()}
    first = models[member_file(1)]
    manifest = Manifest(
        name=f"{model.name}-{params.method}",
        model={
            "source": source, "geometry": asdict(geometry),
            "cascade": {"grids": params.grids, "exit_macs": exit_costs(params, geometry, model.image_shape)},
        },
        preprocessing=model.preprocessing,
        io={"inputs": first["inputs"], "outputs": first["outputs"][:1], "models": models},
        sites=[],
        recipe_sha256=stored.digest(),
    )  # fmt: skip
    with folder_in_place(output, force) as folder:
        for name, graph in files.items():
            onnx.save(graph, str(folder / name))
        (folder / "recipe.yaml").write_text(stored.to_yaml(), encoding="utf-8")
        np.savez_compressed(folder / "samples.npz", **arrays)  # type: ignore[arg-type]
        (folder / "reports").mkdir()
        (folder / "reports" / "export.json").write_text(json_text.written(notes), encoding="utf-8")
        seal(folder, manifest)
    return open_bundle(output)
