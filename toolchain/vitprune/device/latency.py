"""Latency of a packaged model on this machine: the engine where there is one, against ONNX Runtime's CPU.

The document is that of `vitprune benchmark`: two of them, of one device on two days, are compared by `vitprune benchmark --compare`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from vitprune.device import measuring
from vitprune.device.job import Job
from vitprune.device.timing import Timing, Variant
from vitprune.environment import clocks

REFERENCE = "onnxruntime"


def benchmark(
    job: Job, engine: dict[str, Callable[[], Callable[[Any], object]]], version: str, rounds: int, say: Callable[[str], None] = lambda text: None,
    require_locked: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Time whole calls, copies between host and device included, at the smallest and the usual batch.

    Args:
        job: the packaged bundle; its stored samples are what is run.
        engine: {backend: opens a session and gives its function of images float32 [B,C,H,W]}; ONNX Runtime's CPU is measured beside it
            where it is installed, and alone where there is no engine.
        version: of what runs the engine. rounds: of the measurement, at least.
        say: called with one line a result. require_locked: refuse clocks that are not known to be held.

    Returns:
        The contents of benchmark.json.

    Raises:
        TargetError: VP247 clocks.
    """
    before, machine = clocks.state(gpu=bool(engine)), measuring.machine()
    if require_locked:
        clocks.require_locked(before)
    images = job.samples()["images"]
    openers = {**engine, **_onnxruntime(job)}
    backend = next(iter(openers))
    results, made = [], {"rounds": 0, "passes": 0}
    for size in sorted({job.batch[0], job.batch[1]}):
        timings, counts = measuring.in_passes(
            partial(_variants, openers, images, size), rounds=rounds, most=4 * rounds, seed=size, clock="wall"
        )
        made = max(made, counts, key=lambda one: one["rounds"])
        results.append(_result(job, backend, size, {timing.name: timing for timing in timings}))
        one = results[-1]["pruned"]
        say(
            f"{backend} batch {size}: median {one['median_ms']:.2f} ms, p95 {one['p95_ms']:.2f} ms, {one['ratio']:.2f}x {results[-1]['against']}"
        )
    runtime = {"backend": backend, "version": version, "target": job.target["name"], "threads": 0, "clock": "wall"}
    return measuring.document(runtime, before, clocks.state(gpu=bool(engine)), machine, made, results)


def _variants(openers: dict[str, Callable[[], Callable[[Any], object]]], images: Any, size: int) -> list[Variant]:
    """New sessions; the ratio is to ONNX Runtime's CPU where it is there."""
    import numpy as np

    rows = np.resize(np.arange(len(images)), max(1, min(measuring.CALLS, len(images) // size)) * size)
    batches = [np.ascontiguousarray(images[part]) for part in np.split(rows, len(rows) // size)]
    made = []
    for name, opener in openers.items():
        run = opener()
        first, *more = [partial(run, batch) for batch in batches]
        made.append(Variant(name, size, first, more, against=REFERENCE if REFERENCE in openers else ""))
    return made


def _result(job: Job, backend: str, size: int, timings: dict[str, Timing]) -> dict[str, Any]:
    """The entry of the engine; there is no dense model on the device: what it is compared with stands in `other`."""
    one, other = timings[backend], timings.get(REFERENCE)
    return {
        "bundle": job.facts["bundle"], "batch": size, "method": job.facts.get("method", ""), "precision": job.facts["precision"],
        "model_sha256": {"model.onnx": job.facts["model_sha256"]}, "against": REFERENCE if other else backend, "ratio": one.ratio,
        "ratio_interval": [one.ratio_low, one.ratio_high], "pruned": one.document(), "dense": None, "oracle": None, "over_oracle": None,
        "other": other.document() if other and backend != REFERENCE else None, "macs": None, "tokens": None,
        "model_bytes": job.model_path.stat().st_size, "memory": {"pruned_bytes": None, "dense_bytes": None},
    }  # fmt: skip


def _onnxruntime(job: Job) -> dict[str, Callable[[], Callable[[Any], object]]]:
    """The graph on the CPU without spinning threads: those would take the time of the variant whose turn it is next."""
    from vitprune.backends import onnxruntime

    if onnxruntime.missing():
        return {}

    def opener() -> Callable[[Any], object]:
        session, name = onnxruntime.make_session(job.model_path, spin=False), job.facts["io"]["inputs"][0]["name"]
        return lambda images: session.run(None, {name: onnxruntime.as_read(session, images)})

    return {REFERENCE: opener}
