"""export: a timm model to a bundle. rewrite: any dense ViT ONNX to a bundle."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vitprune import methods, parity, pipelines
from vitprune.backends.onnxruntime import make_session
from vitprune.bundle import Bundle, Manifest, check_output, folder_in_place, open_bundle, seal
from vitprune.errors import ExportError, LoadError, VitpruneError
from vitprune.graph import surgery
from vitprune.graph.anatomy import Anatomy
from vitprune.methods.base import Site
from vitprune.models.loading import LoadedModel, from_module, load, require_torch
from vitprune.ops.token_sample import NAME
from vitprune.recipe import Recipe

Report = Callable[[str], None]


def _silent(text: str) -> None:
    """Progress that nobody asked for."""


def export(
    module_or_name: Any,
    recipe: Recipe,
    output: str | Path,
    *,
    pretrained: bool = True,
    seed: int = 0,
    weights: str | None = None,
    data: str | Path | None = None,
    force: bool = False,
    report: Report = _silent,
) -> Bundle:
    """Export a timm VisionTransformer with token pruning.

    Args:
        module_or_name: a timm model name (None = the recipe's) or a VisionTransformer instance.
        recipe: what to prune and how to export.
        output: folder of the new bundle.
        pretrained: take timm's weights for a name; seed: of random weights; weights: a checkpoint file.
        data: images for the samples (.npz or image folder); synthetic ones otherwise.
        force: replace an existing bundle.
        report: called with progress texts.

    Raises:
        ExportError: VP30x the model, VP31x the method does not fit it, VP32x the graph, VP330 graph and reference disagree.
        RecipeError: VP106, VP107 the output; VP11x the recipe does not fit the model.
    """
    output = Path(output)
    check_output(output, force)
    require_torch("export")
    if (own := pipelines.of(recipe)) is not None:
        return own.export(
            module_or_name,
            recipe,
            output,
            pretrained=pretrained,
            seed=seed,
            weights=weights,
            data=data,
            force=force,
            report=report,
        )
    report("loading the model")
    model = _loaded(module_or_name, recipe, pretrained, seed, weights)
    from vitprune.reference.vit import reference

    oracle = reference(model.module, recipe)
    inputs = parity.samples(recipe, model.preprocessing, data)
    report("exporting the dense model to ONNX")
    dense = dense_onnx(model.module, model.image_shape, recipe)
    report("rewriting the graph")
    pruned, anatomy, notes = surgery.rewrite(dense, recipe, has_cls=oracle.geometry.has_cls)
    report("checking against the PyTorch reference")
    arrays = parity.reference_arrays(oracle, model.module, inputs, recipe.graph.static_batch)
    check = parity.check(pruned, arrays, recipe)
    source = {"source": model.source, "geometry": asdict(oracle.geometry)}
    arrays |= {} if inputs.labels is None else {"labels": inputs.labels}
    notes |= {"check": check, "samples": inputs.origin, "dense_nodes": len(dense.graph.node), "nodes": len(pruned.graph.node)}
    return _write(output, force, pruned, anatomy, recipe, model.name, source, model.preprocessing, oracle.sites, arrays, notes)


def rewrite(
    onnx_path: str | Path,
    recipe: Recipe,
    output: str | Path,
    *,
    data: str | Path | None = None,
    force: bool = False,
    report: Report = _silent,
) -> Bundle:
    """Apply a recipe to a dense ViT ONNX from any exporter.

    The rewritten graph with every site bypassed must reproduce the dense graph; the pruned logits stored as samples are those of
    ONNX Runtime, since there is no PyTorch model to ask.

    Raises:
        LoadError: VP604 the file is missing or not ONNX. ExportError: VP32x the graph is not understood, VP331 the canonical
            graph differs from the dense one. RecipeError: as for `export`.
    """
    output, path = Path(output), Path(onnx_path)
    check_output(output, force)
    if (own := pipelines.of(recipe)) is not None:
        return own.rewrite(path, recipe, output)
    report("reading the dense graph")
    dense = read_onnx(path)
    report("rewriting the graph")
    pruned, anatomy, notes = surgery.rewrite(dense, recipe)
    section = recipe.model
    channels = anatomy.image_shape[0]
    preprocessing = {
        "input_size": list(anatomy.image_shape), "mean": section.mean or [0.5] * channels, "std": section.std or [0.5] * channels,
        "interpolation": "bicubic", "crop_pct": 0.9,
    }  # fmt: skip
    inputs = parity.samples(recipe, preprocessing, data)
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
    return _write(
        output, force, pruned, anatomy, recipe, recipe.model.name or path.stem, source, preprocessing, sites, arrays, notes
    )


def read_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises:
        LoadError: VP604 missing, truncated or not ONNX.
    """
    if not path.is_file():
        raise LoadError(604, f"'{path}' not found", cause="no such file", next_step="check the path of the dense ONNX model")
    try:
        model = onnx.load(str(path))
        if not model.graph.node or not model.opset_import:
            raise ValueError("it holds no graph")
        onnx.checker.check_model(model, full_check=False)
    except Exception as error:
        raise LoadError(
            604,
            f"'{path}' is not a readable ONNX model",
            cause=str(error).splitlines()[0][:200],
            next_step="export the dense model again; the file may be truncated",
        ) from error
    return model


def dense_onnx(module: Any, image_shape: tuple[int, int, int], recipe: Recipe) -> onnx.ModelProto:
    """Export a dense module with torch.onnx.

    Raises:
        ExportError: VP304 when torch cannot export it.
    """
    import torch

    static = recipe.graph.static_batch
    image = torch.zeros(static or 2, *image_shape)
    dynamic = None if static else ({0: torch.export.Dim("batch", min=1, max=4096)},)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (image,),
                dynamo=True,
                opset_version=recipe.graph.opset,
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes=dynamic,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            304,
            "torch cannot export the dense model to ONNX",
            cause=str(error).splitlines()[0][:200],
            next_step="try another torch version, or export the ONNX yourself and use vitprune rewrite",
        ) from error
    finally:
        logger.setLevel(level)
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces with paths of the exporting machine
    del model.graph.value_info[:]
    return model


def _loaded(module_or_name: Any, recipe: Recipe, pretrained: bool, seed: int, weights: str | None) -> LoadedModel:
    if module_or_name is not None and not isinstance(module_or_name, str):
        return from_module(module_or_name, recipe.model)
    section = recipe.model
    if module_or_name and module_or_name != section.name:
        section = section.model_copy(update={"name": module_or_name})
    return load(section, pretrained=pretrained, seed=seed, weights=weights)


def _fixed_batch(model: onnx.ModelProto) -> int | None:
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    return dim.dim_value or None


def _write(
    output: Path, force: bool, model: onnx.ModelProto, anatomy: Anatomy, recipe: Recipe, name: str, source: dict[str, Any],
    preprocessing: dict[str, Any], sites: list[Site], arrays: dict[str, NDArray[Any]], notes: dict[str, Any],
) -> Bundle:  # fmt: skip
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
        io=_io(model),
        sites=[{"block": site.block, "limit": site.limit, "bypass": bool(site.options.get("bypass"))} for site in sites],
        recipe_sha256=stored.digest(),
        plugin={"op": "vitprune::TokenSample", "version": "1", "nodes": sum(node.op_type == NAME for node in model.graph.node)},
    )
    with folder_in_place(output, force) as folder:
        onnx.save(model, str(folder / "model.onnx"))
        (folder / "recipe.yaml").write_text(stored.to_yaml(), encoding="utf-8")
        np.savez_compressed(folder / "samples.npz", **arrays)  # type: ignore[arg-type]
        (folder / "reports").mkdir()
        (folder / "reports" / "export.json").write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
        seal(folder, manifest)
    try:
        return open_bundle(output)
    except VitpruneError:
        shutil.rmtree(output, ignore_errors=True)
        raise


def _io(model: onnx.ModelProto) -> dict[str, Any]:
    def describe(value: onnx.ValueInfoProto) -> dict[str, Any]:
        tensor = value.type.tensor_type
        shape = [dim.dim_value or dim.dim_param or None for dim in tensor.shape.dim]
        return {"name": value.name, "dtype": onnx.TensorProto.DataType.Name(tensor.elem_type).lower(), "shape": shape}

    return {"inputs": [describe(v) for v in model.graph.input], "outputs": [describe(v) for v in model.graph.output]}
