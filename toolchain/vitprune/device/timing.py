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
STUDENT = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


@dataclass(frozen=True)
class Timing:
    """One variant over all rounds, milliseconds of one call.

    Attributes:
        images: of one call. median_ms, p95_ms, p99_ms, min_ms: of all calls. spread: distance of the quartiles over the median.
        images_per_second: at the median. ratio: of its time per image to the reference's of the same round, see `combined`.
        ratio_low, ratio_high: its interval at 95 %.
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


@dataclass(frozen=True)
class Samples:
    """What one pass over fresh sessions saw: variant -> rounds -> seconds of every call."""

    seconds: dict[str, list[list[float]]]


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
    one = sample(variants, rounds=rounds, warmup=warmup, seed=seed, clock=clock, report=report)
    return summaries(variants, [one])


def sample(
    variants: list[Variant],
    *,
    rounds: int,
    warmup: int = 3,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Samples:
    """The times of one pass; arguments and errors as for `measure`."""
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
    return Samples(seconds)


def summaries(variants: Sequence[Variant], passes: Sequence[Samples]) -> list[Timing]:
    """One Timing per variant over all passes.

    Args:
        variants: as they were sampled; their calls are not made. passes: at least one.
    """
    first = variants[0].name
    return [
        _summary(variant, variant.against or first, {one.name: one.images for one in variants}, passes) for variant in variants
    ]


def _timed(call: Callable[[], object], clock: Callable[[], float]) -> float:
    began = clock()
    call()
    return clock() - began


def _summary(variant: Variant, against: str, images: dict[str, int], passes: Sequence[Samples]) -> Timing:
    every = [value for one in passes for calls in one.seconds[variant.name] for value in calls]
    median = quantile(every, 0.5)
    ratios = [
        [sum(own) / images[variant.name] / (sum(base) / images[against]) for own, base in zip(one.seconds[variant.name], one.seconds[against], strict=True)]
        for one in passes
    ]  # fmt: skip
    ratio, low, high = combined(ratios)
    return Timing(
        variant.name, variant.images, 1e3 * median, 1e3 * quantile(every, 0.95), 1e3 * min(every), variant.images / median,
        ratio, 1e3 * quantile(every, 0.99), (quantile(every, 0.75) - quantile(every, 0.25)) / median, low, high,
    )  # fmt: skip


def combined(passes: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Ratio and its interval at 95 % from the ratios of rounds, by pass.

    Sessions that are made anew differ by more than the rounds of one of them: where memory lies is part of the time. With three passes
    or more the interval is Student's over the logarithms of the passes' medians; with fewer it is by ranks over all rounds, and says
    nothing about other sessions.
    """
    medians = [math.log(quantile(list(ratios), 0.5)) for ratios in passes]
    if len(medians) < 3:
        every = [ratio for ratios in passes for ratio in ratios]
        return quantile(every, 0.5), *median_interval(every)
    middle = sum(medians) / len(medians)
    spread = math.sqrt(sum((value - middle) ** 2 for value in medians) / (len(medians) - 1))
    half = student(len(medians) - 1) * spread / math.sqrt(len(medians))
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def student(freedom: int) -> float:
    """Quantile 0.975 of Student's distribution (Fisher and Yates' table; beyond it the expansion of Abramowitz and Stegun 26.7.5)."""
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


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
