"""What became of one trial, and which of them are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vitprune.tuning.evaluating import Fidelity

KINDS = ("recipe", "calibrated", "searched", "front")


@dataclass(frozen=True)
class Outcome:
    """A setting that was evaluated on all images.

    number: of the trial. candidate: its name. kind: one of KINDS: a recipe as given, calibrated only, searched, or a good one turned
    down further for the front. prune: method keys. shape: values of its dimensions, None where there
    are none. start: number of the start whose knob was turned. macs: share of the
    dense MACs. spent: share of what the budget counts. agreement, error: see `Fidelity`. tokens: mean patches after every site.
    """

    number: int
    candidate: str
    kind: str
    prune: dict[str, Any]
    shape: dict[str, Any] | None
    start: int | None
    macs: float
    spent: float
    agreement: float | None
    error: float
    tokens: list[float]

    def document(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    @property
    def fidelity(self) -> Fidelity:
        """Agreement and error."""
        return Fidelity(self.agreement, self.error)

    @property
    def rank(self) -> tuple[float, float, float, int]:
        """Best first: agreement, then error, then cost, then the earlier one."""
        return (-(self.agreement or 0.0), self.error, self.spent, self.number)

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.prune["method"])


def within(outcomes: Sequence[Outcome], share: float) -> list[Outcome]:
    """Those that meet the budget."""
    return [one for one in outcomes if one.spent <= share]


def best(outcomes: Sequence[Outcome], share: float) -> Outcome | None:
    """The one that agrees best within the budget, or None."""
    return min(within(outcomes, share), key=lambda one: one.rank, default=None)


def front(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The Pareto front, cheapest first: nothing that costs at most as much agrees better (or as well with less error)."""
    kept: list[Outcome] = []
    for one in sorted(outcomes, key=lambda one: (one.spent, one.rank)):
        if not kept or one.rank[:2] < kept[-1].rank[:2]:
            kept.append(one)
    return kept


def leaders(outcomes: Sequence[Outcome], count: int) -> list[Outcome]:
    """The best of different candidates and shapes, at most two of one candidate: what is worth turning down further."""
    found: list[Outcome] = []
    for one in sorted(outcomes, key=lambda one: (one.fidelity.loss, one.number)):
        if one.kind in ("recipe", "front") or sum(other.candidate == one.candidate for other in found) >= 2:
            continue
        found.append(one)
        if len(found) == count:
            break
    return found
