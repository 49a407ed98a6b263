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
from vitprune.data.preprocessing import of_graph, require_known
from vitprune.errors import ExportError
from vitprune.exporting import parity
from vitprune.exporting.dense import read_onnx
from vitprune.exporting.initializers import check_initializers
from vitprune.exporting.writing import write_bundle
from vitprune.graph import surgery
from vitprune.recipe import Recipe


def rewrite(
    path: Path, recipe: Recipe, output: Path, *, data: str | Path | None, preprocessing: str | None, force: bool,
    report: Callable[[str], None],
) -> Bundle:  # fmt: skip
    """Apply a recipe to a dense ViT ONNX from any exporter.

    The rewritten graph with every site bypassed must reproduce the dense graph; the pruned logits stored as samples are those of
    ONNX Runtime, since there is no PyTorch model to ask.

    Raises:
        LoadError: VP604 the file is missing or not ONNX. ExportError: VP32x the graph is not understood, VP331 the canonical
            graph differs from the dense one. RecipeError: as for `export`.
    """
    report("reading the dense graph")
    dense = read_onnx(path)
    check_initializers(dense, path.name)
    report("rewriting the graph")
    pruned, anatomy, notes = surgery.rewrite(dense, recipe)
    described = of_graph(anatomy.image_shape, recipe.model, preprocessing)
    if recipe.validation.gates.top1_drop is not None:
        require_known(described, "the recipe gates accuracy (validate.gates.top1_drop)")
    inputs = parity.samples(recipe, described, data, anatomy.classes or None)
    report("checking the canonical graph against the dense one")
    batch = _fixed_batch(dense)
    dense_logits = parity.run(make_session(dense.SerializeToString()), inputs.pixels, batch)[0]
    canonical = parity.run(make_session(surgery.canonical(dense, recipe).SerializeToString()), inputs.pixels, batch)[0]
    difference = float(np.abs(canonical - dense_logits).max())
    limit = 1e-5 * max(1.0, float(np.abs(dense_logits).max()))
    if not difference <= limit:
        raise ExportError(
            331,
            "the rewritten graph does not reproduce the dense one",
            cause=f"with nothing pruned the logits differ by {difference:.3g}, allowed is {limit:.3g}",
            next_step="report the dense ONNX file with this message",
        )
    logits, *kept = parity.run(make_session(pruned.SerializeToString()), inputs.pixels, batch)
    sites = methods.get(recipe.prune.method).sites(recipe.prune, surgery.geometry(anatomy))
    arrays: dict[str, NDArray[Any]] = {"images": inputs.pixels, "logits": logits, "dense_logits": dense_logits}
    arrays |= {f"kept_{site.block}": rows for site, rows in zip(sites, kept, strict=True)}
    arrays |= {} if inputs.labels is None else {"labels": inputs.labels}
    source = {"source": {"kind": "onnx", "file": path.name}, "geometry": asdict(surgery.geometry(anatomy))}
    notes |= {
        "check": {"canonical_max_abs": difference},
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
        source,
        inputs.naming(described),
        sites,
        arrays,
        notes,
    )


def _fixed_batch(model: onnx.ModelProto) -> int | None:
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    return dim.dim_value or None
