"""Run a bundle on a backend against its reference and decide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune import backends, methods, targets
from vitprune.backends import Result
from vitprune.bundle import Bundle
from vitprune.data import images as image_data
from vitprune.data.preprocessing import of_bundle, require_known
from vitprune.errors import LoadError, RecipeError, VitpruneError
from vitprune.methods.base import Geometry
from vitprune.methods.cost import dense_blocks, model_macs
from vitprune.support.answers import joined, shapes_of
from vitprune.support.onnx_file import read_model
from vitprune.validation.compare import compare, gate_list, status
from vitprune.validation.divergence import first_divergence
from vitprune.validation.evidence import differing, locked, worst
from vitprune.validation.following import follow
from vitprune.validation.margins import sizes_of
from vitprune.validation.precision import against_float32, decides_unseen, decision_types, gates_in_force
from vitprune.validation.verdict import Verdict

BATCH = 8


def validate(
    bundle: Bundle,
    *,
    backend: str = "onnxruntime",
    target: str | None = None,
    reference: str = "auto",
    data: str | Path | None = None,
    weights: str | None = None,
    samples: int | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> Verdict:
    """Validate a bundle of a single model; arguments and errors as `vitprune.pipelines.validate`."""
    gates = bundle.recipe.validation.gates
    if gates.of_accuracy:
        require_known(of_bundle(bundle), "accuracy is gated (validate.gates)")
    blocks = [int(site["block"]) for site in bundle.manifest.sites]
    session = backends.session(bundle, backend, target)
    stored = bundle.samples()
    other = reference if reference not in ("auto", "torch", "stored") else ""
    module, note = _dense(bundle, "auto" if other else reference, data, weights)
    if module is None:
        arrays, origin = stored, "stored samples"
        arrays = {name: value[: samples or len(value)] for name, value in arrays.items()}
        source = bundle.manifest.model["source"]
        if source["kind"] == "onnx":
            judged = source.get("samples") == "reference"
            label = "stored results of the reference built from the graph" if judged else "stored ONNX Runtime results"
        else:
            label = f"stored samples ({note})"
    else:
        inputs, origin = _inputs(bundle, stored, data, samples)
        report("running the PyTorch reference")
        arrays, label = _live(bundle, module, inputs, blocks, report), "PyTorch, live"
    if gates.of_accuracy and "labels" not in arrays:
        raise RecipeError(
            109,
            "accuracy is gated but there are no labels",
            cause=f"the recipe sets {gates.of_accuracy} and {origin} carries no labels",
            next_step="--data FILE.npz with 'labels', an image folder, or --set validate.gates.top1_drop=null --set validate.gates.dense_top1=null at export",
        )
    gates = gates_in_force(bundle.recipe, arrays["logits"], Geometry(**bundle.manifest.model["geometry"]))
    if other:
        arrays, label = _by_other(bundle, other, arrays, blocks, report)
    report(f"running {backend}")
    result = _in_pieces(session, arrays["images"], report)
    oracle = None
    if module is not None:
        from vitprune.vit.pruned import PrunedViT

        oracle = PrunedViT(module, bundle.recipe).eval()
    followed = follow(oracle, arrays["images"], result.kept, arrays) if oracle is not None and not other else {}
    arrays |= followed if bundle.recipe.precision.mode != "fp32" else {}
    # An engine that gives logits alone shows no decisions: a gate over none of them would always hold.
    seen = bool(result.kept)
    heads = shapes_of(bundle.manifest.io["outputs"]) if bundle.recipe.output.features else None
    comparison = compare(result, arrays, blocks if seen else [], gates, decides_unseen(bundle.recipe), heads)
    facts = {"backend_version": backends.get(backend).version(), "decisions_compared": seen, **getattr(session, "facts", {})}
    first = differing(result, arrays, blocks if seen else [])
    worst_images = worst(result, arrays, first)
    if seen:
        facts["locked"] = locked(result, arrays | followed, first)
    facts["worst_images"] = worst_images
    gate_seen = [gate for gate in gate_list(comparison, gates) if seen or gate.name != "decisions"]
    if bundle.recipe.precision.mode != "fp32":
        gate_seen.append(decision_types(bundle))
        if module is not None and data is not None and heads is None:
            report("running the PyTorch reference in fp32")
            full = _float32(bundle, module, arrays["images"])
            gate_seen += against_float32(result.logits, full, arrays.get("labels"), bundle.recipe.precision)
    kept = [site.kept_mean for site in comparison.sites] if seen else _reference_counts(arrays, blocks)
    if status(gate_seen) == "failed":
        report("looking for the first difference")
        facts["divergence"] = _divergence(bundle, oracle, arrays["images"], worst_images[0]["image"], backend, target)
    comparison = replace(comparison, evidence=facts)
    return Verdict(bundle.manifest.name, backend, label, origin, comparison, gate_seen, _macs(bundle, kept))


def _by_other(
    bundle: Bundle, reference: str, arrays: dict[str, NDArray[Any]], blocks: list[int], report: Callable[[str], None]
) -> tuple[dict[str, NDArray[Any]], str]:
    """The arrays with the results of another runtime in place of the reference's, and what to call it.

    Margins stay those of the reference where they are known; a decision that nobody knows the margin of may not fall otherwise.

    Raises:
        LoadError: VP61x the runtime; VP618 it shows no decisions where the graph has some.
    """
    target = reference.removeprefix("target:") if reference.startswith("target:") else None
    name = targets.load(target).backend if target is not None else reference
    session = backends.session(bundle, name, target)
    report(f"running {reference} as the reference")
    result = _in_pieces(session, arrays["images"], report)
    if blocks and not result.kept:
        raise LoadError(
            618, f"'{reference}' shows no decisions to compare with", cause="its engine gives logits alone",
            next_step="build it with --kept-outputs, or take it as --backend and another runtime as --reference",
        )  # fmt: skip
    kept = {f"kept_{block}": lists for block, lists in zip(blocks, result.kept, strict=True)}
    return {**arrays, "logits": result.logits, **kept}, f"{name} ({target})" if target else name


def _divergence(
    bundle: Bundle, oracle: Any, pixels: NDArray[np.float32], image: int, backend: str, target: str | None
) -> dict[str, Any]:
    """Where model.onnx leaves the reference first on an image, or why that cannot be said."""
    if oracle is None:
        return {"text": "where it differs first cannot be said: there is no live reference"}
    model = read_model(bundle.model_path)
    found = first_divergence(model, oracle, pixels, image, bundle.recipe.precision.mode, bundle.recipe.graph.static_batch)
    if found is not None:
        return found.document()
    where = "" if backend == "onnxruntime" and target is None else f": what differs is {target or backend}"
    return {"text": f"on image {image} model.onnx agrees with the reference in every block{where}"}


def _dense(bundle: Bundle, reference: str, data: Any, weights: str | None) -> tuple[Any, str]:
    """The live dense module, or None and the reason why stored samples serve."""
    from vitprune.backends import torch as torch_backend

    if reference == "stored":
        return None, "asked for"
    try:
        if why := torch_backend.missing():
            raise LoadError(611, "PyTorch is not at hand", cause=why, next_step="pip install 'vitprune[torch]'")
        return torch_backend.dense_module(bundle, weights), ""
    except VitpruneError as error:
        if reference == "torch" or data is not None or weights is not None:
            raise
        return None, error.cause or error.message


def _inputs(
    bundle: Bundle, stored: dict[str, NDArray[Any]], data: str | Path | None, samples: int | None
) -> tuple[image_data.Images, str]:
    if data is None:
        count = samples or len(stored["images"])
        labels = stored.get("labels")
        return image_data.Images(
            stored["images"][:count], None if labels is None else labels[:count], "stored samples"
        ), "stored samples"
    loaded = image_data.for_bundle(bundle, Path(data), samples or bundle.recipe.validation.samples)
    return loaded, loaded.origin


def _live(
    bundle: Bundle, module: Any, inputs: image_data.Images, blocks: list[int], report: Callable[[str], None]
) -> dict[str, NDArray[Any]]:
    import torch

    from vitprune.backends.onnxruntime import _stack
    from vitprune.vit.features import dense_answers
    from vitprune.vit.pruned import PrunedViT

    oracle, whole = PrunedViT(module, bundle.recipe).eval(), dense_answers(module, bundle.recipe.output)
    logits, dense, kept, margin, overflow, size = [], [], [], [], [], []
    with torch.inference_mode():
        for start in range(0, len(inputs), BATCH):
            x = torch.from_numpy(inputs.pixels[start : start + BATCH])
            logits.append(oracle(x).numpy())
            dense.append(joined([one.numpy() for one in answer]) if isinstance(answer := whole(x), tuple) else answer.numpy())
            kept.append([value.numpy() for value in oracle.kept])
            margin.append([value.numpy() for value in oracle.margin])
            overflow.append([value.numpy() for value in oracle.overflow])
            size.append([value.numpy() for value in oracle.margin_sizes])
            report(f"running the PyTorch reference {min(start + BATCH, len(inputs))}/{len(inputs)}")
    arrays: dict[str, NDArray[Any]] = {
        "images": inputs.pixels,
        "logits": np.concatenate(logits),
        "dense_logits": np.concatenate(dense),
    }
    for number, block in enumerate(blocks):
        arrays[f"kept_{block}"] = _stack([part[number] for part in kept])
        arrays[f"margin_{block}"] = np.concatenate([part[number] for part in margin])
        arrays[f"overflow_{block}"] = np.concatenate([part[number] for part in overflow])
        arrays |= sizes_of(block, [part[number] for part in size])
    return arrays if inputs.labels is None or bundle.recipe.output.features else arrays | {"labels": inputs.labels}


def _float32(bundle: Bundle, module: Any, pixels: NDArray[np.float32]) -> NDArray[Any]:
    """Logits of the pruned reference in fp32."""
    import torch

    from vitprune.vit.pruned import PrunedViT

    oracle = PrunedViT(module, bundle.recipe.with_("precision.mode", "fp32")).eval()
    with torch.inference_mode():
        starts = range(0, len(pixels), BATCH)
        return np.concatenate([oracle(torch.from_numpy(pixels[start : start + BATCH])).numpy() for start in starts])


def _in_pieces(session: Any, pixels: NDArray[np.float32], report: Callable[[str], None]) -> Result:
    from vitprune.backends.onnxruntime import _stack

    parts = []
    for start in range(0, len(pixels), BATCH):
        parts.append(session.run(pixels[start : start + BATCH]))
        report(f"running the graph {min(start + BATCH, len(pixels))}/{len(pixels)}")
    return Result(
        np.concatenate([part.logits for part in parts]),
        [_stack([part.kept[i] for part in parts]) for i in range(len(parts[0].kept))],
    )


def _reference_counts(arrays: dict[str, NDArray[Any]], blocks: list[int]) -> list[float]:
    """Mean kept counts of the reference, per site."""
    return [float((arrays[f"kept_{block}"] >= 0).sum(axis=1).mean()) for block in blocks]


def _macs(bundle: Bundle, kept: list[float]) -> dict[str, float]:
    """Mean MACs per image, dense and pruned, from mean kept counts."""
    geometry = Geometry(**bundle.manifest.model["geometry"])
    method = methods.get(bundle.recipe.prune.method)
    sites = method.sites(bundle.recipe.prune, geometry)
    blocks = method.block_tokens(sites, geometry, kept)
    dense = model_macs(geometry, dense_blocks(geometry))
    pruned = model_macs(geometry, blocks)
    return {"dense": dense, "pruned": pruned, "ratio": pruned / dense}
