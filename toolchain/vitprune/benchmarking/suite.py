"""`vitprune benchmark`: bundles and their dense models in one interleaved run, and the document that says what was measured."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune import backends
from vitprune.benchmarking import memory, subjects
from vitprune.bundle import Bundle
from vitprune.device import measuring
from vitprune.device.measuring import CALLS, KIND, SCHEMA
from vitprune.device.timing import Timing, Variant
from vitprune.environment import clocks
from vitprune.errors import LoadError
from vitprune.exporting.inspecting import inspect

__all__ = ["CALLS", "KIND", "SCHEMA", "Plan", "benchmark"]
Images = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Plan:
    """What to measure: where, which batches, how often; clock "cpu" (time of this process) or "wall".

    most: rounds that are not exceeded while a ratio is not known to 1 %; None: no more than `rounds`. dense: against the dense model.
    oracle: against the slice oracle too. memory: also the memory that models take.
    """

    where: subjects.Runtime
    batches: tuple[int, ...]
    rounds: int
    clock: str
    dense: bool = True
    seed: int = 0
    require_locked: bool = False
    most: int | None = None
    oracle: bool = False
    memory: bool = False


def benchmark(
    bundles: dict[str, Bundle],
    plan: Plan,
    images: Images,
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
        RecipeError: VP187, VP188, VP189.
    """
    for bundle in bundles.values():
        for size in plan.batches:
            subjects.require_batch(bundle, plan.where, size)
    before, machine = clocks.state(plan.where.gpu), measuring.machine()
    if plan.require_locked:
        clocks.require_locked(before)
    results, made = [], {"rounds": 0, "passes": 0}
    with tempfile.TemporaryDirectory(prefix="vitprune-") as folder:
        files = _files(bundles, plan, Path(folder), lambda text: report(0, 1, text))
        for number, size in enumerate(plan.batches):

            def progress(done: int, planned: int, number: int = number, size: int = size) -> None:
                report(number * planned + done, len(plan.batches) * planned, f"batch {size}, round {done} of {planned}")

            timings, counts = measuring.in_passes(
                partial(_variants, bundles, files, plan, images, size),
                rounds=plan.rounds, most=plan.most or plan.rounds, seed=plan.seed + 1000 * number, clock=plan.clock, report=progress,
            )  # fmt: skip
            made = max(made, counts, key=lambda one: one["rounds"])
            results += [
                _result(name, bundle, plan, size, {timing.name: timing for timing in timings}, next(iter(bundles)))
                | _memory(name, bundle, files, plan, images, size)
                for name, bundle in bundles.items()
            ]
    runtime = {
        "backend": plan.where.backend, "version": backends.get(plan.where.backend).version(),
        "target": plan.where.target.name if plan.where.target else None, "threads": plan.where.threads, "clock": plan.clock,
    }  # fmt: skip
    return measuring.document(runtime, before, clocks.state(plan.where.gpu), machine, made, results)


def _files(
    bundles: dict[str, Bundle], plan: Plan, folder: Path, report: Callable[[str], None]
) -> dict[tuple[str, str], Path | None]:
    """(bundle, "dense", "pruned" or "oracle") -> file; None for a bundle's own."""
    found: dict[tuple[str, str], Path | None] = {}
    for number, (name, bundle) in enumerate(bundles.items()):
        for kind, make in (("dense", subjects.dense), ("oracle", subjects.oracle)):
            if getattr(plan, kind):
                place = folder / f"{kind}{number}"
                place.mkdir()
                found[name, kind] = make(bundle, plan.where, place, report)
        found[name, "pruned"] = None
    return found


def _variants(
    bundles: dict[str, Bundle], files: dict[tuple[str, str], Path | None], plan: Plan, images: Images, size: int
) -> list[Variant]:
    """New sessions of everything; a bundle's dense model comes before it."""
    variants = []
    for (name, kind), file in files.items():
        bundle = bundles[name]
        session = subjects.pruned(bundle, plan.where) if file is None else subjects.dense_session(bundle, plan.where, file)
        first, *more = [_call(session.run, batch) for batch in subjects.batches(images[name], size, CALLS)]
        twin = f"{name} dense" if plan.dense else ""
        variants.append(Variant(f"{name} {kind}", size, first, more, against=twin))
    if not plan.dense:  # the first of all is what the others are compared with: a bundle, not an oracle
        variants.sort(key=lambda variant: not variant.name.endswith(" pruned"))
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


def _result(name: str, bundle: Bundle, plan: Plan, size: int, timings: dict[str, Timing], first: str) -> dict[str, Any]:
    """The entry of a bundle and batch; its ratio is to its own dense model, or to the first bundle where none is timed."""
    one = timings[f"{name} pruned"]
    dense, oracle = (timings.get(f"{name} {kind}") for kind in ("dense", "oracle"))
    return {
        "bundle": name, "batch": size, "method": bundle.recipe.prune.method, "precision": bundle.recipe.precision.mode,
        "model_sha256": {file: bundle.manifest.files[file] for file in bundle.model_files},
        "against": "dense" if plan.dense else first, "ratio": one.ratio, "ratio_interval": [one.ratio_low, one.ratio_high],
        "pruned": one.document(), "dense": dense and dense.document(), "oracle": oracle and oracle.document(),
        "over_oracle": one.ratio / oracle.ratio if oracle else None, **_cost(bundle),
    }  # fmt: skip


def _cost(bundle: Bundle) -> dict[str, Any]:
    """MACs and mean tokens by the stored samples, and bytes of the model files; a cascade's cost depends on its exits and is left out."""
    size = sum((bundle.path / name).stat().st_size for name in bundle.model_files)
    if len(bundle.model_files) > 1:
        return {"macs": None, "tokens": None, "model_bytes": size}
    found = inspect(bundle)
    return {"macs": found["macs"], "tokens": [block["entering"] for block in found["blocks"]], "model_bytes": size}


def _memory(
    name: str, bundle: Bundle, files: dict[tuple[str, str], Path | None], plan: Plan, images: Images, size: int
) -> dict[str, Any]:
    """Bytes at the peak of processes that run the models alone; null where they are not measured or cannot be told."""
    if not plan.memory or len(bundle.model_files) > 1:
        return {"memory": {"pruned_bytes": None, "dense_bytes": None}}
    batch = subjects.batches(images[name], size, 1)[0]
    dense = files.get((name, "dense"))
    return {
        "memory": {
            "pruned_bytes": memory.peak(bundle, plan.where, None, batch),
            "dense_bytes": memory.peak(bundle, plan.where, dense, batch) if dense else None,
        }
    }
