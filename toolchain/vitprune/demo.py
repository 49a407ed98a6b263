"""The whole pipeline on the shipped Fashion-MNIST model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from vitprune import engines, methods, plugins, targets
from vitprune.benchmarking import subjects, suite
from vitprune.bundle import Bundle, open_bundle
from vitprune.data import images as image_data
from vitprune.engines import building, requirements
from vitprune.errors import RecipeError, TargetError
from vitprune.exporting.dense import dense_onnx
from vitprune.graph import surgery
from vitprune.pipelines import export, rewrite, session, validate
from vitprune.recipe import Recipe
from vitprune.reports.html import html_report
from vitprune.support.resources import recipes_folder
from vitprune.validation.validate import BATCH
from vitprune.validation.verdict import Verdict
from vitprune.vit.loading import load

CLASSES = ["T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
MARKER = ".vitprune-demo"
ROUNDS = 20


@dataclass(frozen=True)
class DemoResult:
    """What the demo produced: verdict, rows of (what, dense, pruned), the HTML file, notes, and a benchmark's entry, None without one."""

    verdict: Verdict
    facts: list[list[str]]
    report: Path
    notes: list[str]
    speed: dict[str, Any] | None


def run(method: str, folder: Path, step: Callable[[str], Any]) -> DemoResult:
    """Export, rewrite, build, validate and report.

    Args:
        method: a recipe in recipes/fashion_mnist/. folder: where everything goes; an earlier demo there is replaced.
        step: context manager factory that shows one step.

    Raises:
        RecipeError: VP100 no such shipped recipe; VP106 the folder holds something else.
    """
    _prepare(folder)
    recipe = Recipe.load(f"fashion_mnist/{method}")
    data = recipes_folder() / "fashion_mnist" / "test_images.npz"
    with step(f"export: PyTorch to a pruned ONNX bundle ({method})") as shown:
        bundle = export(None, recipe, folder / method, data=data, force=True, report=shown.update)
    with step("native operators for ONNX Runtime's CPU"):
        missing = _native()
    if methods.get(recipe.prune.method).pipeline is not None:
        return _cascade(bundle, recipe, data, step, missing)
    with step("rewrite: the same surgery on the dense ONNX file, without PyTorch's help") as shown:
        dense = dense_onnx(load(recipe.model).module, tuple(bundle.manifest.preprocessing["input_size"]), recipe)
        dense_path = folder / "dense.onnx"
        onnx.save(dense, str(dense_path))
        again = rewrite(dense_path, recipe, folder / f"{method}-rewritten", data=data, force=True, report=shown.update)
    notes = [_agreement(bundle, again), *missing]
    sizes = {"model.onnx": (dense_path.stat().st_size, bundle.model_path.stat().st_size)}
    for name in ("onnxruntime-cpu", "rtx"):
        target = targets.load(name)
        try:
            requirements.require_backend(target)
        except TargetError as error:
            notes.append(f"{name} engine left out: {error.cause}")
            continue
        with step(f"build-engine --target {name}") as shown:
            document = engines.build_engine(bundle, target, report=shown.update)
            sizes[f"{name} engine"] = (_dense_engine(dense, recipe, target, folder, shown.update), document["engine_bytes"])
    with step("validate on 1,000 test images") as shown:
        verdict = validate(bundle, data=data, report=shown.update)
    with step(f"benchmark on ONNX Runtime's CPU, batch {BATCH}") as shown:
        speed = _speed(bundle, data, shown.update) if "onnxruntime-cpu engine" in sizes else None
    facts = _facts(verdict, sizes, bundle.manifest.model["geometry"]["patches"], speed)
    images, labels, kept, logits = _pictures(bundle, data)
    groups = _groups(recipe, images)
    patches = int(np.sqrt(bundle.manifest.model["geometry"]["patches"]))
    arrays = {"images": images, "labels": labels, "run_logits": logits}
    text = html_report(
        verdict, arrays, kept, bundle.manifest.preprocessing, (patches, patches), facts=facts, class_names=CLASSES, groups=groups
    )
    return DemoResult(verdict, facts, bundle.write_report("report.html", text), notes, speed)


def _speed(bundle: Bundle, data: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """The entry of a benchmark of the onnxruntime-cpu engine against the dense model's, one thread, CPU time."""
    plan = suite.Plan(subjects.runtime("onnxruntime-cpu", "onnxruntime", 1), (BATCH,), ROUNDS, "cpu", most=2 * ROUNDS)
    images = image_data.for_bundle(bundle, data, suite.CALLS * BATCH).pixels
    measured = suite.benchmark(
        {bundle.path.name: open_bundle(bundle.path)}, plan, {bundle.path.name: images}, lambda *done: report(done[2])
    )
    entry: dict[str, Any] = measured["results"][0]
    return entry


def _native() -> list[str]:
    """Build the library's part for the CPU, which build-engine then takes, unless there is one; why there is none, where that is so."""
    why = "plain nodes are timed: the native operators are not there, {}"
    if (found := plugins.built()) is not None and found.onnxruntime_api:
        return []
    try:
        if found is None and plugins.build(cuda=False).onnxruntime_api:
            return []
    except plugins.PluginError as error:
        return [why.format(f"{error.cause} {error.next_step}")]
    return [why.format("no onnxruntime_c_api.h was found (docs/plugin.md)")]


def _cascade(bundle: Bundle, recipe: Recipe, data: Path, step: Callable[[str], Any], missing: list[str]) -> DemoResult:
    """The rest of the demo for a cascade, which has several graphs, no dense twin to rewrite and no dropped tokens to show."""
    notes = ["rewrite is left out: a cascade is trained as three models, there is no dense graph to rewrite", *missing]
    sizes: dict[str, tuple[int, int]] = {}
    for name in ("onnxruntime-cpu", "rtx"):
        target = targets.load(name)
        try:
            requirements.require_backend(target)
        except TargetError as error:
            notes.append(f"{name} engine left out: {error.cause}")
            continue
        with step(f"build-engine --target {name}") as shown:
            document = engines.build_engine(bundle, target, report=shown.update)
            notes.append(f"{name} engines: {document['engine_bytes'] / 2**20:.2f} MiB")
    with step("validate on 1,000 test images") as shown:
        verdict = validate(bundle, data=data, report=shown.update)
    shown_images = image_data.for_bundle(bundle, data, 200)
    logits = session(bundle, "onnxruntime").run(shown_images.pixels).logits
    arrays: dict[str, Any] = {"images": shown_images.pixels, "labels": shown_images.labels, "run_logits": logits}
    facts = _facts(verdict, sizes, 0)
    side = recipe.prune.grids[-1]  # type: ignore[attr-defined]
    text = html_report(verdict, arrays, [], bundle.manifest.preprocessing, (side, side), facts=facts, class_names=CLASSES)
    notes.append("no speed-up is given: a cascade has no dense model of its own")
    return DemoResult(verdict, facts, bundle.write_report("report.html", text), notes, None)


def _prepare(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise RecipeError(
            106,
            f"output '{folder}' exists and is not an earlier demo",
            cause="the demo replaces only its own files",
            next_step="choose another -o",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).touch()
    except OSError as error:
        raise RecipeError(
            107, f"cannot write '{folder}'", cause=error.strerror or str(error), next_step="choose another -o"
        ) from error


def _agreement(one: Bundle, other: Bundle) -> str:
    """One line on how well two bundles' stored samples agree; images on which a decision differs are counted, not averaged away."""
    first, second = one.samples(), other.samples()
    count = min(len(first["logits"]), len(second["logits"]))
    same = np.ones(count, dtype=bool)
    for name in (name for name in first if name.startswith("kept_")):
        pairs = zip(first[name][:count], second[name][:count], strict=True)
        same &= [set(a[a >= 0].tolist()) == set(b[b >= 0].tolist()) for a, b in pairs]
    worst = np.abs(first["logits"][:count] - second["logits"][:count]).max(axis=1)[same].max(initial=0.0)
    text = f"export and rewrite give the same logits within {worst:.1e}"
    return (
        text if same.all() else f"{text}; on {int((~same).sum())} of {count} images a decision on the margin fell the other way"
    )


def _dense_engine(
    dense: onnx.ModelProto, recipe: Recipe, target: targets.Target, folder: Path, report: Callable[[str], None]
) -> int:
    """Size of the dense engine for the same target, built from the canonical dense graph."""
    model, output = folder / "dense-canonical.onnx", folder / f"dense-{target.name}.engine"
    onnx.save(surgery.canonical(dense, recipe), str(model))
    request = {
        "backend": target.backend,
        "model": str(model),
        "output": str(output),
        "log": str(folder / "dense-build.log"),
        "batch": recipe.graph.profile,
        "workspace_mib": None,
    }
    building.run_child(request, report, timeout=600)
    size = output.stat().st_size
    for path in (model, output, folder / "dense-build.log"):
        path.unlink(missing_ok=True)
    return size


def _facts(
    verdict: Verdict, sizes: dict[str, tuple[int, int]], patches: int, speed: dict[str, Any] | None = None
) -> list[list[str]]:
    comparison = verdict.comparison
    assert comparison.accuracy is not None
    tokens = ", ".join(f"{site.kept_mean:.0f}" for site in comparison.sites)
    blocks = ", ".join(str(site.block) for site in comparison.sites)
    timed = []
    if speed is not None:
        ratio = f"{1 / speed['ratio']:.2f}x as fast"
        timed = [
            [
                f"ms on onnxruntime-cpu, batch {speed['batch']}",
                f"{speed['dense']['median_ms']:.2f}",
                f"{speed['pruned']['median_ms']:.2f}: {ratio}",
            ]
        ]
    rows = [
        *timed,
        ["top-1 accuracy", f"{comparison.accuracy['dense']:.1f} %", f"{comparison.accuracy['pruned']:.1f} %"],
        [
            "MACs per image",
            f"{verdict.macs['dense'] / 1e6:.1f} M",
            f"{verdict.macs['pruned'] / 1e6:.1f} M ({verdict.macs['ratio']:.2f}x)",
        ],
        *([[f"mean patches after blocks {blocks}", ", ".join([str(patches)] * len(comparison.sites)), tokens]] if tokens else []),
        ["logits against PyTorch, worst", "–", f"{comparison.logits_max_abs:.1e}"],
    ]
    return rows + [[name, f"{dense / 2**20:.2f} MiB", f"{pruned / 2**20:.2f} MiB"] for name, (dense, pruned) in sizes.items()]


def _groups(recipe: Recipe, images: np.ndarray) -> list[Any] | None:
    """Per site int64 [n,P], which patch stands for every patch, by the reference; None for methods that do not merge."""
    import torch

    from vitprune.vit.pruned import PrunedViT

    oracle = PrunedViT(load(recipe.model).module, recipe).eval()
    with torch.inference_mode():
        oracle(torch.from_numpy(images))
    return list(oracle.extra["groups"].numpy()) if "groups" in oracle.extra else None


def _pictures(bundle: Bundle, data: Path) -> tuple[Any, Any, list[Any], Any]:
    from vitprune.backends.onnxruntime import _stack

    loaded = image_data.for_bundle(bundle, data, 200)
    opened = session(open_bundle(bundle.path), "onnxruntime")
    parts = [opened.run(loaded.pixels[start : start + BATCH]) for start in range(0, len(loaded), BATCH)]
    kept = [_stack([part.kept[site] for part in parts]) for site in range(len(parts[0].kept))]
    return loaded.pixels, loaded.labels, kept, np.concatenate([part.logits for part in parts])
