"""Writing a bundle of a single model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitprune.bundle import Bundle, Manifest, folder_in_place, open_bundle, seal
from vitprune.errors import ExportError, RecipeError
from vitprune.graph import surgery
from vitprune.graph.anatomy.find import Anatomy
from vitprune.graph.reading import Source
from vitprune.graph.skeletons import SKELETON, skeleton
from vitprune.methods.base import Site
from vitprune.ops.token_sample import NAME
from vitprune.recipe import Recipe
from vitprune.support import json_text, onnx_weights


def write_bundle(
    output: Path, force: bool, model: onnx.ModelProto, anatomy: Anatomy, recipe: Recipe, name: str, source: dict[str, Any],
    preprocessing: dict[str, Any], sites: list[Site], arrays: dict[str, NDArray[Any]], notes: dict[str, Any],
    dense: onnx.ModelProto | Source | None = None,
) -> Bundle:  # fmt: skip
    """Write model, recipe, samples, notes and manifest; a bundle that cannot be opened again is removed.

    dense: the dense graph, kept as `skeletons.SKELETON`; where it is refused the bundle has none, its benchmark no baseline, and the notes
    say why.
    """
    weights = recipe.model.weights
    portable = weights if weights is None or weights.startswith("shipped:") else Path(weights).name
    stored = recipe.model_copy(
        update={
            "model": recipe.model.model_copy(
                update={"weights": portable, "name": recipe.model.name or source["source"].get("name")}
            ),
            "prune": recipe.prune.portable(),
        }
    )
    manifest = Manifest(
        name=f"{name}-{recipe.prune.method}",
        model=source,
        preprocessing=preprocessing,
        io=describe_io(model),
        sites=[{"block": site.block, "limit": site.limit, "bypass": site.options.bypass} for site in sites],
        recipe_sha256=stored.digest(),
        plugin={"op": "vitprune::TokenSample", "version": "1", "nodes": sum(node.op_type == NAME for node in model.graph.node)},
    )
    with folder_in_place(output, force) as folder:
        onnx_weights.save(model, folder / "model.onnx")
        if dense is not None:
            try:
                (folder / SKELETON).write_bytes(skeleton(surgery.dense(dense, recipe), model).SerializeToString())
            except (ExportError, RecipeError) as error:
                notes = {**notes, "no_dense_graph": error.cause or error.message}
        (folder / "recipe.yaml").write_text(stored.to_yaml(), encoding="utf-8")
        np.savez_compressed(folder / "samples.npz", **arrays)  # type: ignore[arg-type]
        (folder / "reports").mkdir()
        (folder / "reports" / "export.json").write_text(json_text.written(notes), encoding="utf-8")
        seal(folder, manifest)
        opened = open_bundle(folder)  # what cannot be opened does not take the place of what is there
    return Bundle(output, opened.manifest, opened.recipe)


def describe_io(model: onnx.ModelProto) -> dict[str, Any]:
    """Names, types and shapes of the inputs and outputs, JSON-ready."""

    def describe(value: onnx.ValueInfoProto) -> dict[str, Any]:
        tensor = value.type.tensor_type
        shape = [dim.dim_value or dim.dim_param or None for dim in tensor.shape.dim]
        return {"name": value.name, "dtype": onnx.TensorProto.DataType.Name(tensor.elem_type).lower(), "shape": shape}

    return {"inputs": [describe(v) for v in model.graph.input], "outputs": [describe(v) for v in model.graph.output]}
