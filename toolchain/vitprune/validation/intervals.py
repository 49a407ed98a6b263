"""How sure a share of images is: intervals at 95 %, and how many images a decision would take."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054  # of the normal distribution at 97.5 %
MOST = 10**9  # images; a decision that takes more is never reached


def wilson(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927)."""
    if not count:
        return 0.0, 1.0
    share, scale = hits / count, 1 + Z * Z / count
    centre = (share + Z * Z / (2 * count)) / scale
    half = Z / scale * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def images_needed(hits: int, count: int, limit: float) -> int | None:
    """Images whose interval would leave out a share `limit`, if as many of them were hits; None where no number would."""

    def decided(images: int) -> bool:
        low, high = wilson(round(hits * images / count), images)
        return not low < limit <= high

    return _first(decided, count)


def _first(decided: Callable[[int], bool], start: int) -> int | None:
    """A number of images from which on a decision stands, by doubling and halving; None beyond MOST."""
    high = start
    while not decided(high):
        high *= 2
        if high > MOST:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high


def _statistic(lost: float, won: float, count: float, drop: float) -> float:
    """Tango's score statistic of the hypothesis that the true difference is `drop`."""
    b = -lost - won + (2 * count - lost + won) * drop
    c = -won * drop * (1 - drop)
    q = (math.sqrt(max(b * b - 8 * count * c, 0.0)) - b) / (4 * count)
    variance = count * (2 * q + drop * (1 - drop))
    excess = lost - won - count * drop
    if variance <= 0:
        return 0.0 if excess == 0 else math.copysign(math.inf, excess)
    return excess / math.sqrt(variance)


def paired(lost: float, won: float, count: float) -> tuple[float, float]:
    """95 % score interval of a difference of two shares measured on the same images.

    The images that both models get right, or both wrong, say nothing; what counts is `lost` (first right, second wrong) and `won` (the
    other way round). T. Tango, Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design, Statistics in Medicine 17, 1998: the differences whose score test is not rejected; Wilson's interval for pairs. It keeps
    its level where few images or none differ.

    Returns:
        Lower and upper end of (lost - won) / count.
    """
    if count <= 0:
        return -1.0, 1.0
    point = (lost - won) / count

    def end(outer: float, sign: int) -> float:
        inner = point
        for _ in range(60):
            middle = (inner + outer) / 2
            inside = sign * _statistic(lost, won, count, middle) < Z
            inner, outer = (middle, outer) if inside else (inner, middle)
        return inner

    return end(-1.0, 1), end(1.0, -1)


def mcnemar(lost: int, won: int) -> float:
    """Two-sided p-value that both models are equally good: exact binomial test (Q. McNemar, Psychometrika 12, 1947)."""
    count = lost + won
    tail = sum(math.comb(count, k) for k in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / 2**count)


@dataclass(frozen=True)
class Drop:
    """Accuracy lost against the dense model on the same images.

    Attributes:
        images: compared. lost: the dense model alone is right. won: the pruned one alone is. low, high: 95 % interval of the drop in
            points. p: of McNemar's exact test.
    """

    images: int
    lost: int
    won: int
    low: float
    high: float
    p: float

    @property
    def points(self) -> float:
        """The drop seen, in percentage points."""
        return 100 * (self.lost - self.won) / self.images if self.images else math.nan

    def decides(self, limit: float) -> bool | None:
        """Whether the drop is below a limit in points (True), above it (False), or the interval spans it (None)."""
        return True if self.high < limit else False if self.low > limit else None

    def images_needed(self, limit: float) -> int | None:
        """Images that would decide, if they differed as often as these do; None where no number would."""
        rates = self.lost / self.images, self.won / self.images

        def decided(count: int) -> bool:
            low, high = paired(rates[0] * count, rates[1] * count, count)
            return 100 * high < limit or 100 * low > limit

        return _first(decided, self.images)


def drop(dense: NDArray[np.int64], pruned: NDArray[np.int64], labels: NDArray[np.int64]) -> Drop:
    """The drop of two models' answers [n] on labels [n]."""
    lost = int(((dense == labels) & (pruned != labels)).sum())
    won = int(((dense != labels) & (pruned == labels)).sum())
    low, high = paired(lost, won, len(labels))
    return Drop(len(labels), lost, won, 100 * low, 100 * high, mcnemar(lost, won))
