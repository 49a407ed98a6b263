"""What `vitprune benchmark` and device packages share: passes over fresh sessions until the ratios are known well enough, and the document.

Stands on its own in a package: standard library alone.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitprune.device.timing import Samples, Timing, Variant, sample, summaries
from vitprune.support.about import VERSION

SCHEMA = 1
KIND = "vitprune benchmark"
STATEMENT = "whole calls, copies between host and device included"
CALLS = 8  # batches of different images in a round: kept counts differ between them
PASSES = 5  # with sessions of their own, where there are rounds enough
WITHIN = 0.01  # half of a ratio's interval that is narrow enough


def in_passes(
    make: Callable[[], list[Variant]], *, rounds: int, most: int, seed: int, clock: str,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Timing], dict[str, int]]:  # fmt: skip
    """Measure in passes of new sessions; more of them while a ratio's interval is wider than +-WITHIN and `most` rounds are not reached.

    Args:
        make: opens sessions and gives variants of the same names every time. rounds: at least one; fewer than 2 * PASSES are one pass and no more.
        seed: of the orders inside the rounds. clock: "cpu" or "wall". report: called with the rounds done and those planned.

    Returns:
        A Timing per variant, and {"rounds", "passes"} that were made.
    """
    ticks = time.process_time if clock == "cpu" else time.perf_counter
    count = PASSES if rounds >= 2 * PASSES else 1
    size = -(-rounds // count)
    passes: list[Samples] = []
    variants: list[Variant] = []
    while True:
        variants.clear()  # the last pass's engines go before there are new ones
        variants, done = list(make()), len(passes)

        def progress(now: int, _: int, done: int = done) -> None:
            report(done * size + now, max(count, done + 1) * size)

        passes.append(sample(variants, rounds=size, seed=seed + done, clock=ticks, report=progress))
        if len(passes) < count:
            continue
        timings = summaries(variants, passes)
        if count == 1 or (len(passes) + 1) * size > most or all(map(_narrow, timings)):
            return timings, {"rounds": len(passes) * size, "passes": len(passes)}


def _narrow(timing: Timing) -> bool:
    return timing.ratio_high - timing.ratio_low <= 2 * WITHIN * timing.ratio


def machine() -> dict[str, Any]:
    """System, processor and load as they are now; `finished` completes it."""
    return {
        "system": platform.platform(), "processor": _processor(), "cpus": os.cpu_count(), "load_before": list(os.getloadavg()),
        "load_after": [],
    }  # fmt: skip


def document(
    runtime: dict[str, Any], before: dict[str, Any], after: dict[str, Any], where: dict[str, Any], made: dict[str, int], results: list[dict[str, Any]]
) -> dict[str, Any]:  # fmt: skip
    """The document of a measurement.

    Args:
        runtime: backend, version, target, threads, clock. before, after: of `environment.clocks.state`. where: of `machine`, before.
        made: of `in_passes`, the largest of all batches. results: one per model and batch.
    """
    return {
        "schema_version": SCHEMA, "kind": KIND, "tool_version": VERSION, "runtime": runtime,
        "machine": {**where, "load_after": list(os.getloadavg())}, **made, "calls_a_round": CALLS, "statement": STATEMENT,
        "clocks": {"before": before, "after": after}, "warnings": warnings(before), "results": results,
    }  # fmt: skip


def warnings(before: dict[str, Any]) -> list[str]:
    """What a reader has to know of the clocks."""
    return [] if before["locked"] is True else [f"clocks are not known to be held: {before['why']}"]


def _processor() -> str:
    """The processor's name as Linux tells it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
