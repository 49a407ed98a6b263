"""Thresholds of a cascade from a calibration set (methods.md §4.5).

`solve` is exact for two thresholds: it sweeps all pairs of observed confidences, for the least mean cost that reaches an accuracy or for
the best accuracy within a budget. `official` is the released code's rule, a geometric family of exit fractions, quirks included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune.errors import RecipeError

DISABLED = 1.0e8


@dataclass(frozen=True)
class Solution:
    """thresholds as in a recipe (null = never answers); accuracy in percent, mean cost and share of images per exit on the data."""

    thresholds: list[float | None]
    accuracy: float
    mean_cost: float
    fractions: list[float]


def evaluate(
    certainty: NDArray[Any], correct: NDArray[np.bool_], costs: Sequence[float], thresholds: Sequence[float | None]
) -> Solution:
    """What thresholds achieve.

    Args:
        certainty: [2,n] confidence at exits 1 and 2. correct: bool [3,n], whether each exit is right. costs: cumulative, one per exit.
        thresholds: two.
    """
    exits = np.full(certainty.shape[1], len(costs) - 1)
    for number in reversed(range(len(thresholds))):
        limit = thresholds[number]
        if limit is not None:
            exits[certainty[number] >= limit] = number
    shares = [float((exits == number).mean()) for number in range(len(costs))]
    accuracy = 100 * float(correct[exits, np.arange(len(exits))].mean())
    return Solution(list(thresholds), accuracy, float(np.dot(shares, costs)), shares)


def official_fractions(p: int) -> NDArray[np.float64]:
    """Share of images per exit in the released code's family: q_k proportional to (p/20)^k, k = 1, 2, 3; p from 1 to 59."""
    family = (p / 20) ** np.arange(1, 4)
    return np.asarray(family / family.sum(), np.float64)


def official(certainty: NDArray[Any], fractions: Sequence[float]) -> list[float]:
    """The released code's thresholds for wanted exit fractions.

    Exit k takes the floor(n q_k) most confident of the images still there, ties included. Where that number is zero, or larger than the
    number of images left, its threshold stays 1e8: the exit is disabled without a word. That quirk is kept here; `recipe_thresholds`
    writes it as an explicit null.

    Args:
        certainty: [2,n]. fractions: one per exit.

    Returns:
        Three thresholds in the dtype's own values; the last is -1e8.
    """
    count = certainty.shape[1]
    open_images = np.ones(count, bool)
    found = []
    for values, fraction in zip(certainty, fractions, strict=False):
        wanted = int(np.floor(count * float(fraction)))
        limit = DISABLED
        if 0 < wanted <= open_images.sum():
            limit = float(np.sort(values[open_images])[::-1][wanted - 1])
        open_images &= ~(values >= limit)
        found.append(limit)
    return [*found, -DISABLED]


def recipe_thresholds(thresholds: Sequence[float]) -> list[float | None]:
    """Official thresholds as a recipe wants them: without the last, 1e8 written as null."""
    return [None if limit >= DISABLED else float(limit) for limit in thresholds[:-1]]


def check_goal(accuracy: float | None, budget: float | None) -> None:
    """Raise RecipeError VP154 unless exactly one goal is given."""
    if (accuracy is None) == (budget is None):
        raise RecipeError(
            154,
            "thresholds are solved for exactly one goal",
            cause="either the accuracy to reach at least cost, or the budget for the best accuracy",
            next_step="--accuracy 76.5, or --budget 2.5",
        )


def solve(
    certainty: NDArray[Any],
    correct: NDArray[np.bool_],
    costs: Sequence[float],
    *,
    accuracy: float | None = None,
    budget: float | None = None,
    quantiles: int = 512,
) -> Solution:
    """Best pair of thresholds on the data.

    Exact over all observed confidences while there are at most `quantiles` distinct ones at exit 1 (exit 2 is always exact); beyond
    that exit 1 is swept over evenly spaced quantiles.

    Args:
        certainty, correct, costs: as for `evaluate`. accuracy: percent to reach at least cost. budget: mean cost to stay within at the
            best accuracy. Exactly one of the two.

    Raises:
        RecipeError: VP154 not exactly one goal, or empty data; VP155 out of reach, naming what is reachable.
    """
    check_goal(accuracy, budget)
    if not certainty.shape[1]:
        raise RecipeError(154, "there are no images to solve thresholds on", next_step="give at least one image")
    best: tuple[tuple[float, float], float, float] | None = None
    reach = (-np.inf, np.inf)
    for first in _candidates(certainty[0], quantiles):
        left = certainty[0] < first
        seconds, hits, spent = _second(certainty[1], correct, costs, left)
        reach = (max(reach[0], float(hits.max())), min(reach[1], float(spent.min())))
        fits = hits >= accuracy - 1e-9 if accuracy is not None else spent <= _at_most(budget)
        for at in np.flatnonzero(fits):
            key = (spent[at], -hits[at]) if accuracy is not None else (-hits[at], spent[at])
            if best is None or key < best[0]:
                best = ((float(key[0]), float(key[1])), float(first), float(seconds[at]))
    if best is None:
        goal = f"an accuracy of {accuracy:g} %" if accuracy is not None else f"a mean cost of {budget:g}"
        limit = f"at most {reach[0]:.4g} %" if accuracy is not None else f"at least {reach[1]:.6g}"
        raise RecipeError(
            155,
            f"{goal} is out of reach",
            cause=f"on these images the cascade reaches {limit}",
            next_step="relax the goal, or train the cascade further",
        )
    first = _apart(certainty[0], best[1])
    second = _apart(certainty[1][certainty[0] < best[1]], best[2])
    return evaluate(certainty, correct, costs, [first, second])


def _apart(values: NDArray[Any], limit: float) -> float | None:
    """A threshold half way to the next lower confidence: same exits on the data, and no image sits on the edge."""
    if np.isinf(limit):
        return None
    lower = values[values < limit].astype(np.float64)
    return (limit + float(lower.max())) / 2 if len(lower) else limit


def _at_most(budget: float | None) -> float:
    assert budget is not None
    return budget * (1 + 1e-12)


def _candidates(values: NDArray[Any], quantiles: int) -> NDArray[np.float64]:
    """Thresholds worth trying: infinity (nobody leaves), then observed confidences from high to low."""
    distinct = np.unique(values.astype(np.float64))[::-1]
    if len(distinct) > quantiles:
        distinct = distinct[np.unique(np.linspace(0, len(distinct) - 1, quantiles).astype(np.int64))]
    return np.concatenate([[np.inf], distinct])


def _second(
    values: NDArray[Any], correct: NDArray[np.bool_], costs: Sequence[float], left: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """All thresholds of exit 2 for the images `left` by exit 1: thresholds, accuracy in percent, mean cost over everybody."""
    count = len(values)
    order = np.argsort(-values[left].astype(np.float64), kind="stable")
    sure = values[left].astype(np.float64)[order]
    gain = correct[1][left][order].astype(np.int64) - correct[2][left][order]
    base = int(correct[0][~left].sum()) + int(correct[2][left].sum())
    hits = base + np.concatenate([[0], np.cumsum(gain)])
    spent = costs[0] * (count - len(sure)) + costs[2] * len(sure) - (costs[2] - costs[1]) * np.arange(len(sure) + 1)
    # A threshold takes all of its ties: only the last of equal confidences is a place to cut.
    cut = np.concatenate([[True], np.append(sure[1:] != sure[:-1], True)]) if len(sure) else np.ones(1, bool)
    thresholds = np.concatenate([[np.inf], sure])
    return thresholds[cut], 100 * hits[cut] / count, spent[cut] / count
