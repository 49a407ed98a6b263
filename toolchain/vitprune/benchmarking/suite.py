"""`vitprune benchmark`: bundles and their dense models in one interleaved run, and the document that says what was measured."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune import backends
from vitprune.benchmarking import clocks, subjects
from vitprune.bundle import Bundle
from vitprune.device.timing import Timing, Variant, measure
from vitprune.errors import LoadError
from vitprune.exporting.inspecting import inspect
from vitprune.support.about import VERSION

SCHEMA = 1
KIND = "vitprune benchmark"
CALLS = 8  # batches of different images in a round: kept counts differ between them


@dataclass(frozen=True)
class Plan:
    """What to measure: where, which batches, how often; clock "cpu" (time of this process) or "wall"; dense: against the dense model."""

    where: subjects.Runtime
    batches: tuple[int, ...]
    rounds: int
    clock: str
    dense: bool = True
    seed: int = 0
    require_locked: bool = False


def benchmark(
    bundles: dict[str, Bundle],
    plan: Plan,
    images: dict[str, NDArray[np.float32]],
    report: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> dict[str, Any]:
    """Measure bundles.

    Args:
        bundles: by the names they get in the document. plan: see there. images: per bundle float32 [n,C,H,W], preprocessed.
        report: called with done, total and a text.

    Returns:
        The document: schema_version, what was run where, clocks before and after, results (one per bundle and batch).

    Raises:
        TargetError: VP247 clocks. LoadError: VP650, VP651 no dense model, VP652 one that is no model of the images; backends' own.
        RecipeError: VP187, VP188.
    """
    for bundle in bundles.values():
        for size in plan.batches:
            subjects.require_batch(bundle, plan.where, size)
    before, load = clocks.state(plan.where.gpu), os.getloadavg()
    if plan.require_locked:
        clocks.require_locked(before)
    results, total = [], len(bundles) * len(plan.batches) * plan.rounds
    with tempfile.TemporaryDirectory(prefix="vitprune-") as folder:
        sessions = _sessions(bundles, plan, Path(folder), lambda text: report(0, total, text))
        for number, size in enumerate(plan.batches):
            variants = _variants(sessions, images, size)
            began = number * plan.rounds * len(bundles)

            def progress(done: int, rounds: int, began: int = began, size: int = size) -> None:
                report(began + done * len(bundles), total, f"batch {size}, round {done} of {rounds}")

            clock = time.process_time if plan.clock == "cpu" else time.perf_counter
            timings = measure(variants, rounds=plan.rounds, seed=plan.seed + number, clock=clock, report=progress)
            results += _results(bundles, plan, size, {timing.name: timing for timing in timings})
    after = clocks.state(plan.where.gpu)
    return {
        "schema_version": SCHEMA, "kind": KIND, "tool_version": VERSION,
        "runtime": {
            "backend": plan.where.backend, "version": backends.get(plan.where.backend).version(),
            "target": plan.where.target.name if plan.where.target else None, "threads": plan.where.threads, "clock": plan.clock,
        },
        "machine": {"system": platform.platform(), "processor": _processor(), "cpus": os.cpu_count(), "load_before": list(load), "load_after": list(os.getloadavg())},
        "rounds": plan.rounds, "calls_a_round": CALLS, "statement": "whole calls, copies between host and device included",
        "clocks": {"before": before, "after": after}, "warnings": _warnings(before), "results": results,
    }  # fmt: skip


def _sessions(
    bundles: dict[str, Bundle], plan: Plan, folder: Path, report: Callable[[str], None]
) -> dict[tuple[str, str], Callable[[Any], Any]]:
    """(bundle, "dense" or "pruned") -> call."""
    found: dict[tuple[str, str], Callable[[Any], Any]] = {}
    for number, (name, bundle) in enumerate(bundles.items()):
        if plan.dense:
            place = folder / str(number)
            place.mkdir()
            found[name, "dense"] = subjects.dense(bundle, plan.where, place, report).run
        report(name)
        found[name, "pruned"] = subjects.pruned(bundle, plan.where).run
    return found


def _variants(
    sessions: dict[tuple[str, str], Callable[[Any], Any]], images: dict[str, NDArray[np.float32]], size: int
) -> list[Variant]:
    variants = []
    for (name, kind), run in sessions.items():
        first, *more = [_call(run, batch) for batch in subjects.batches(images[name], size, CALLS)]
        twin = f"{name} dense" if (name, "dense") in sessions else ""
        variants.append(Variant(f"{name} {kind}", size, first, more, against=twin))
    return variants


def _call(run: Callable[[Any], Any], batch: NDArray[np.float32]) -> Callable[[], object]:
    """A call that insists on finite logits once, so that a broken model is not timed for its speed."""
    logits = run(batch).logits
    if len(logits) != len(batch) or not np.isfinite(logits).all():
        raise LoadError(
            652, "what is to be timed gives no logits", cause=f"{list(np.shape(logits))} for {len(batch)} images, or not finite",
            next_step="vitprune validate the bundle",
        )  # fmt: skip
    return lambda: run(batch)


def _results(bundles: dict[str, Bundle], plan: Plan, size: int, timings: dict[str, Timing]) -> list[dict[str, Any]]:
    """One entry per bundle; its ratio is to its own dense model, or to the first bundle where none is timed."""
    found = []
    for name, bundle in bundles.items():
        one = timings[f"{name} pruned"]
        dense = timings[f"{name} dense"].document() if plan.dense else None
        found.append({
            "bundle": name, "batch": size, "method": bundle.recipe.prune.method, "precision": bundle.recipe.precision.mode,
            "model_sha256": {file: bundle.manifest.files[file] for file in bundle.model_files},
            "against": "dense" if plan.dense else next(iter(bundles)), "ratio": one.ratio,
            "ratio_interval": [one.ratio_low, one.ratio_high], "pruned": one.document(), "dense": dense, **_cost(bundle),
        })  # fmt: skip
    return found


def _cost(bundle: Bundle) -> dict[str, Any]:
    """MACs and mean tokens by the stored samples, and bytes of the model files; a cascade's cost depends on its exits and is left out."""
    size = sum((bundle.path / name).stat().st_size for name in bundle.model_files)
    if len(bundle.model_files) > 1:
        return {"macs": None, "tokens": None, "model_bytes": size}
    found = inspect(bundle)
    return {"macs": found["macs"], "tokens": [block["entering"] for block in found["blocks"]], "model_bytes": size}


def _warnings(before: dict[str, Any]) -> list[str]:
    return [] if before["locked"] is True else [f"clocks are not known to be held: {before['why']}"]


def _processor() -> str:
    """The processor's name as Linux tells it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
