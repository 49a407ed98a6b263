"""Latency of a few variants, measured so that a busy machine does not decide the outcome.

Variants take turns inside every round in random order and are compared within the round; medians over the rounds are reported.
Timing one variant after the other would compare the machine's moods instead (clocks, temperature, neighbours).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

LEVEL = 0.95


@dataclass(frozen=True)
class Timing:
    """One variant over all rounds, milliseconds of one call.

    Attributes:
        images: of one call. median_ms, p95_ms, p99_ms, min_ms: of all calls. spread: distance of the quartiles over the median.
        images_per_second: at the median. ratio: median over the rounds of its time per image to the reference's of the same round.
        ratio_low, ratio_high: its interval at 95 %, by ranks, whatever the distribution.
    """

    name: str
    images: int
    median_ms: float
    p95_ms: float
    min_ms: float
    images_per_second: float
    ratio: float
    p99_ms: float = 0.0
    spread: float = 0.0
    ratio_low: float = 0.0
    ratio_high: float = 0.0

    def document(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


@dataclass(frozen=True)
class Variant:
    """Something to time.

    call: runs `images` images once and returns when their result is there. more: further calls of as many other images that belong to
    the same round: where the time depends on the image, a round then sees the same mixture for every variant. against: name of the
    variant that its ratio is to; the first of all when empty.
    """

    name: str
    images: int
    call: Callable[[], object]
    more: Sequence[Callable[[], object]] = ()
    against: str = ""

    @property
    def calls(self) -> list[Callable[[], object]]:
        """All calls of a round."""
        return [self.call, *self.more]


def measure(
    variants: list[Variant],
    *,
    rounds: int = 20,
    warmup: int = 3,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Timing]:
    """Time variants against the first of them, or those that they name.

    Args:
        variants: at least one; the first is the reference of the ratios.
        rounds: each variant is called once a round.
        warmup: unmeasured calls of each variant.
        seed: of the order inside the rounds.
        clock: seconds.
        report: called with the rounds done and all rounds.

    Raises:
        ValueError: no variant, no round, or two variants of one name.
    """
    if not variants or rounds < 1 or len({variant.name for variant in variants}) != len(variants):
        raise ValueError("measure needs at least one round of variants with different names")
    for variant in variants:
        for _ in range(warmup):
            for call in variant.calls:
                call()
    seconds: dict[str, list[list[float]]] = {variant.name: [] for variant in variants}
    order, chance = list(variants), random.Random(seed)
    for done in range(rounds):
        chance.shuffle(order)
        for variant in order:
            seconds[variant.name].append([_timed(call, clock) for call in variant.calls])
        report(done + 1, rounds)
    means = {variant.name: [sum(calls) / len(calls) / variant.images for calls in seconds[variant.name]] for variant in variants}
    return [
        _summary(variant, seconds[variant.name], means[variant.name], means[variant.against or variants[0].name])
        for variant in variants
    ]


def _timed(call: Callable[[], object], clock: Callable[[], float]) -> float:
    began = clock()
    call()
    return clock() - began


def _summary(variant: Variant, rounds: list[list[float]], own: list[float], reference: list[float]) -> Timing:
    every = [value for calls in rounds for value in calls]
    median = quantile(every, 0.5)
    ratios = [mean / base for mean, base in zip(own, reference, strict=True)]
    low, high = median_interval(ratios)
    return Timing(
        variant.name, variant.images, 1e3 * median, 1e3 * quantile(every, 0.95), 1e3 * min(every), variant.images / median,
        quantile(ratios, 0.5), 1e3 * quantile(every, 0.99), (quantile(every, 0.75) - quantile(every, 0.25)) / median, low, high,
    )  # fmt: skip


def median_interval(values: list[float]) -> tuple[float, float]:
    """Interval at 95 % of the median: the ranks that a sign test does not reject; the extremes where there are fewer than six values."""
    ordered, count = sorted(values), len(values)
    below, rank = 0.0, 0
    while rank < count // 2:
        below += math.comb(count, rank) / 2**count
        if 2 * below > 1 - LEVEL:
            break
        rank += 1
    low = max(rank - 1, 0)
    return ordered[low], ordered[count - 1 - low]


def quantile(values: list[float], share: float) -> float:
    """Linear interpolation between the ranks, as numpy does by default."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
