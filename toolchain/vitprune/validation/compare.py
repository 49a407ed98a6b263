"""Compare a run with the reference: logits, kept patches per site, decision margins (methods.md §9)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vitprune.backends import Result
    from vitprune.recipe import Gates


@dataclass(frozen=True)
class SiteComparison:
    """One site over all images: mean kept counts, images whose kept sets differ, legal and illegal flips of single patches."""

    block: int
    kept_mean: float
    kept_min: int
    kept_max: int
    images_differing: int
    legal_flips: int
    illegal_flips: int
    worst_margin: float
    overflowed: int = 0


@dataclass(frozen=True)
class Comparison:
    """Everything the gates look at.

    logits_max_abs covers images whose decisions all agree: after a legal flip another token set is computed with, which is a different
    and equally valid result.
    """

    images: int
    logits_max_abs: float
    logits_compared: int
    top1_agreement: float
    dense_agreement: float | None
    sites: list[SiteComparison]
    accuracy: dict[str, float] | None = None
    evidence: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


@dataclass(frozen=True)
class Gate:
    """One gate: its limit, what was seen, and whether it holds."""

    name: str
    limit: float
    seen: float
    passed: bool
    unit: str = ""

    def text(self) -> str:
        """One line."""
        return f"{self.name} {self.seen:.3g}{self.unit} ({'within' if self.passed else 'beyond'} {self.limit:g}{self.unit})"


def _sets(kept: NDArray[np.int64]) -> list[set[int]]:
    return [set(row[row >= 0].tolist()) for row in kept]


def compare(result: Result, reference: dict[str, NDArray[Any]], blocks: list[int], gates: Gates) -> Comparison:
    """Compare a run with stored or live reference arrays.

    Args:
        result: what ran. reference: logits, kept_<block>, margin_<block> where known, dense_logits, labels where known.
        blocks: the sites, in order.
        gates: for the flip margin.
    """
    count = len(result.logits)
    agreeing = np.ones(count, bool)
    sites = []
    for block, kept in zip(blocks, result.kept, strict=True):
        ours, theirs = _sets(kept), _sets(reference[f"kept_{block}"])
        margin = reference.get(f"margin_{block}")
        legal = illegal = differing = 0
        worst = 0.0
        for image in np.flatnonzero(agreeing):
            flips = sorted(ours[image] ^ theirs[image])
            if not flips:
                continue
            differing += 1
            agreeing[image] = False
            for patch in flips:
                distance = float(margin[image, patch]) if margin is not None else float("inf")
                worst = max(worst, distance)
                legal, illegal = (legal + 1, illegal) if distance <= gates.flip_margin else (legal, illegal + 1)
        sizes = [len(row) for row in ours]
        overflow = reference.get(f"overflow_{block}")
        sites.append(
            SiteComparison(
                block,
                float(np.mean(sizes)),
                min(sizes),
                max(sizes),
                differing,
                legal,
                illegal,
                worst,
                int((overflow > 0).sum()) if overflow is not None else 0,
            )
        )
    difference = np.abs(result.logits - reference["logits"]).max(axis=1)
    dense = reference.get("dense_logits")
    top1 = result.logits.argmax(1)
    return Comparison(
        images=count,
        logits_max_abs=float(difference[agreeing].max()) if agreeing.any() else float("nan"),
        logits_compared=int(agreeing.sum()),
        top1_agreement=float((top1 == reference["logits"].argmax(1)).mean()),
        dense_agreement=None if dense is None else float((top1 == dense.argmax(1)).mean()),
        sites=sites,
        accuracy=_accuracy(result.logits, reference),
    )


def _accuracy(logits: NDArray[Any], reference: dict[str, NDArray[Any]]) -> dict[str, float] | None:
    """Top-1 in percent of the run, the reference and the dense model, where labels are known."""
    labels = reference.get("labels")
    if labels is None:
        return None
    table = {"pruned": logits, "reference": reference["logits"]}
    table |= {"dense": reference["dense_logits"]} if "dense_logits" in reference else {}
    return {name: round(100 * float((values.argmax(1) == labels).mean()), 3) for name, values in table.items()}


def gate_list(comparison: Comparison, gates: Gates) -> list[Gate]:
    """Every gate that is switched on."""
    found = [
        Gate(
            "decisions",
            0,
            sum(site.illegal_flips for site in comparison.sites),
            not any(site.illegal_flips for site in comparison.sites),
        )
    ]
    if gates.logits_max_abs is not None:
        seen = comparison.logits_max_abs
        found.append(Gate("logits_max_abs", gates.logits_max_abs, seen, bool(seen <= gates.logits_max_abs)))
    if gates.top1_agreement is not None:
        seen = comparison.top1_agreement
        found.append(Gate("top1_agreement", gates.top1_agreement, seen, seen >= gates.top1_agreement))
    if gates.top1_drop is not None and comparison.accuracy is not None and "dense" in comparison.accuracy:
        seen = comparison.accuracy["dense"] - comparison.accuracy["pruned"]
        found.append(Gate("top1_drop", gates.top1_drop, seen, seen <= gates.top1_drop, " points"))
    return found


def failures(comparison: Comparison, gates: Gates) -> list[Gate]:
    """The gates that do not hold."""
    return [gate for gate in gate_list(comparison, gates) if not gate.passed]
