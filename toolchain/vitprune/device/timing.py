"""Latency of a few variants, measured so that a busy machine does not decide the outcome.

Variants take turns inside every round in random order and are compared within the round; medians over the rounds are reported.
Timing one variant after the other would compare the machine's moods instead (clocks, temperature, neighbours).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Timing:
    """One variant over all rounds, milliseconds of one call; ratio: median over rounds of its time per image to the reference's."""

    name: str
    images: int
    median_ms: float
    p95_ms: float
    min_ms: float
    images_per_second: float
    ratio: float

    def document(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


@dataclass(frozen=True)
class Variant:
    """Something to time: `call` runs `images` images once and returns when their result is there."""

    name: str
    images: int
    call: Callable[[], object]


def measure(
    variants: list[Variant],
    *,
    rounds: int = 20,
    warmup: int = 3,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Time variants against the first of them.

    Args:
        variants: at least one; the first is the reference of the ratios.
        rounds: each variant is called once a round.
        warmup: unmeasured calls of each variant.
        seed: of the order inside the rounds.
        clock: seconds.

    Raises:
        ValueError: no variant, no round, or two variants of one name.
    """
    if not variants or rounds < 1 or len({variant.name for variant in variants}) != len(variants):
        raise ValueError("measure needs at least one round of variants with different names")
    for variant in variants:
        for _ in range(warmup):
            variant.call()
    seconds: dict[str, list[float]] = {variant.name: [] for variant in variants}
    order, chance = list(variants), random.Random(seed)
    for _ in range(rounds):
        chance.shuffle(order)
        for variant in order:
            began = clock()
            variant.call()
            seconds[variant.name].append(clock() - began)
    reference = [value / variants[0].images for value in seconds[variants[0].name]]
    return [_summary(variant, seconds[variant.name], reference) for variant in variants]


def _summary(variant: Variant, seconds: list[float], reference: list[float]) -> Timing:
    median = quantile(seconds, 0.5)
    ratios = [value / variant.images / base for value, base in zip(seconds, reference, strict=True)]
    return Timing(
        variant.name, variant.images, 1e3 * median, 1e3 * quantile(seconds, 0.95), 1e3 * min(seconds), variant.images / median,
        quantile(ratios, 0.5),
    )  # fmt: skip


def quantile(values: list[float], share: float) -> float:
    """Linear interpolation between the ranks, as numpy does by default."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
