"""Latency of a packaged model on this machine: the engine where there is one, and ONNX Runtime's CPU beside it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from vitprune.device.job import Job
from vitprune.device.timing import Variant, measure
from vitprune.environment.jetson import power_mode, power_state


def benchmark(
    job: Job, calls: dict[str, Callable[[Any], object]], rounds: int, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Time whole calls, copies between host and device included, at the smallest and the usual batch.

    Args:
        job: the packaged bundle; its stored samples are what is run.
        calls: name -> function of images float32 [B,C,H,W]; ONNX Runtime's CPU is added where it is installed.
        rounds: of the measurement.
        say: called with one line a variant.

    Returns:
        The contents of benchmark.json; the first variant is the reference of the ratios.
    """
    import numpy as np

    images = job.samples()["images"]
    sizes = sorted({job.batch[0], job.batch[1]})
    fed = {size: np.ascontiguousarray(np.resize(images, (size, *images.shape[1:]))) for size in sizes}
    every = {**calls, **_onnxruntime(job)}
    variants = [_variant(name, call, size, fed[size]) for name, call in every.items() for size in sizes]
    before, load = power_state(), os.getloadavg()
    timings = measure(variants, rounds=rounds)
    for timing in timings:
        say(f"{timing.name}: median {timing.median_ms:.2f} ms, p95 {timing.p95_ms:.2f} ms, {timing.ratio:.2f}x per image")
    return {
        "schema_version": 1, "rounds": rounds, "reference": variants[0].name, "statement": "whole calls, host copies included",
        "variants": [timing.document() for timing in timings], "cpus": os.cpu_count(), "load_before": list(load),
        "load_after": list(os.getloadavg()), "power_mode": power_mode(before), "power_before": before, "power_after": power_state(),
    }  # fmt: skip


def _variant(name: str, call: Callable[[Any], object], size: int, images: Any) -> Variant:
    return Variant(f"{name} batch {size}", size, lambda: call(images))


def _onnxruntime(job: Job) -> dict[str, Callable[[Any], object]]:
    """The graph on the CPU without spinning threads: those would take the time of the variant whose turn it is next."""
    from vitprune.backends import onnxruntime

    if onnxruntime.missing():
        return {}
    session, name = onnxruntime.make_session(job.model_path, spin=False), job.facts["io"]["inputs"][0]["name"]
    return {"onnxruntime": lambda images: session.run(None, {name: images})}
