"""Compare a run with the reference: logits, kept patches per site, decision margins (methods.md §9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitprune.validation import intervals, power
from vitprune.validation.features import OutputFigures, figures, worst
from vitprune.validation.margins import distances

if TYPE_CHECKING:
    from vitprune.backends import Result
    from vitprune.recipe import Gates


@dataclass(frozen=True)
class SiteComparison:
    """One site over all images: mean kept counts, images whose kept sets differ, legal and illegal flips of single patches.

    decisions: patches that were decided on, of images that agree so far, where the reference knows its margins. could_fail: those beyond
    the flip margin, whose flip would have been illegal; where there is none the gate on decisions says nothing.
    """

    block: int
    kept_mean: float
    kept_min: int
    kept_max: int
    images_differing: int
    legal_flips: int
    illegal_flips: int
    worst_margin: float
    overflowed: int = 0
    decisions: int = 0
    could_fail: int = 0


@dataclass(frozen=True)
class Comparison:
    """Everything the gates look at.

    logits_max_abs covers images whose decisions all agree, or whose reference followed them (`validation.following`): after a legal flip another token set is computed with, which is a different
    and equally valid result. top1_agreement_interval: at 95 %. drop: of accuracy against the dense model, where labels are known.
    features: of a model that gives features, figures per output over the images compared; it has no top-1.
    """

    images: int
    logits_max_abs: float
    logits_compared: int
    top1_agreement: float | None
    dense_agreement: float | None
    sites: list[SiteComparison]
    accuracy: dict[str, float] | None = None
    evidence: dict[str, Any] = field(default_factory=dict)
    top1_agreement_interval: tuple[float, float] = (0.0, 1.0)
    drop: intervals.Drop | None = None
    features: list[OutputFigures] | None = None

    def document(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


@dataclass(frozen=True)
class Gate:
    """One gate: its limit, what was seen, and whether it holds.

    interval: of what was seen, at 95 %, where it is an estimate. undecided: the interval spans the limit, so that the gate neither
    holds nor fails; it does not pass. more: images that would decide it, beyond those seen; None where no number would. note: what a
    reader must know of the gate.
    """

    name: str
    limit: float
    seen: float
    passed: bool
    unit: str = ""
    interval: tuple[float, float] | None = None
    undecided: bool = False
    more: int | None = None
    note: str = ""

    def text(self) -> str:
        """One line."""
        between = "" if self.interval is None else f", 95 % interval {self.interval[0]:.3g} to {self.interval[1]:.3g}"
        word = "within" if self.passed else "undecided against" if self.undecided else "beyond"
        return f"{self.name} {self.seen:.3g}{self.unit}{between} ({word} {self.limit:g}{self.unit}{self._advice()})" + (
            f"; {self.note}" if self.note else ""
        )

    def _advice(self) -> str:
        if not self.undecided:
            return ""
        return (
            ": no number of images decides it"
            if self.more is None
            else f": about {rounded(self.more):,} more images would decide it"
        )

    def document(self) -> dict[str, Any]:
        """JSON-ready form."""
        plain = {"name": self.name, "limit": self.limit, "seen": self.seen, "passed": self.passed}
        estimate = {} if self.interval is None else {"interval": list(self.interval), "undecided": self.undecided}
        further = {"more_images": self.more} if self.undecided else {}
        return plain | estimate | further | ({"note": self.note} if self.note else {})


def rounded(count: int) -> int:
    """A number of images to two digits, upwards: it is an estimate."""
    step = 10 ** max(0, len(str(count)) - 2)
    return -(-count // step) * step


def _sets(kept: NDArray[np.int64]) -> list[set[int]]:
    return [set(row[row >= 0].tolist()) for row in kept]


def compare(
    result: Result,
    reference: dict[str, NDArray[Any]],
    blocks: list[int],
    gates: Gates,
    hidden: bool = False,
    heads: dict[str, tuple[int, ...]] | None = None,
) -> Comparison:
    """Compare a run with stored or live reference arrays.

    Args:
        result: what ran. reference: logits, kept_<block>, margin_<block> and size_<block> where known, dense_logits, labels where known.
        blocks: the sites, in order.
        gates: for the flip margin. hidden: decisions that no list shows may have differed; then a flip is as sure as the least sure
            decision so far, and answers are compared where they are near or every decision was sure. heads: of features, the shape
            without the batch of every output, by name.
    """
    count = len(result.logits)
    agreeing = np.ones(count, bool)
    sites = []
    surest = np.full(count, np.inf)
    for block, kept in zip(blocks, result.kept, strict=True):
        ours, theirs = _sets(kept), _sets(reference[f"kept_{block}"])
        margin = distances(reference, block)
        legal = illegal = differing = 0
        worst = 0.0
        asked, could = power.count(margin, surest if hidden else None, agreeing, gates.flip_margin)
        for image in np.flatnonzero(agreeing):
            flips = sorted(ours[image] ^ theirs[image])
            if not flips:
                continue
            differing += 1
            agreeing[image] = False
            for patch in flips:
                distance = float(margin[image, patch]) if margin is not None else float("inf")
                distance = min(distance, float(surest[image])) if hidden else distance
                worst = max(worst, distance)
                legal, illegal = (legal + 1, illegal) if distance <= gates.flip_margin else (legal, illegal + 1)
        if margin is not None:
            surest = np.minimum(surest, margin.min(axis=1))
        sizes = [len(row) for row in ours]
        overflow = reference.get(f"overflow_{block}")
        overflowed = int((overflow > 0).sum()) if overflow is not None else 0
        sites.append(SiteComparison(
            block, float(np.mean(sizes)), min(sizes), max(sizes), differing, legal, illegal, worst, overflowed, asked, could,
        ))  # fmt: skip
    expected = reference["logits"]
    difference = np.abs(result.logits - expected).max(axis=1)
    if (followed := reference.get("logits_followed")) is not None:
        again = ~agreeing & ~np.isnan(followed).any(axis=1)
        expected = np.where(again[:, None], followed, expected)
        difference[again] = np.abs(result.logits - followed).max(axis=1)[again]
        agreeing |= again
    if hidden and not heads and gates.logits_max_abs is not None:
        # Left out as a legal flip is that no reference follows; no number never is.
        agreeing &= ~((difference > gates.logits_max_abs) & (surest <= gates.flip_margin))
    dense = reference.get("dense_logits")
    if heads:
        return _of_features(result, expected, dense, agreeing, sites, heads)
    top1 = result.logits.argmax(1)
    return Comparison(
        images=count,
        logits_max_abs=float(difference[agreeing].max()) if agreeing.any() else float("nan"),
        logits_compared=int(agreeing.sum()),
        top1_agreement=float((top1 == expected.argmax(1)).mean()),
        top1_agreement_interval=intervals.wilson(int((top1 == expected.argmax(1)).sum()), count),
        dense_agreement=None if dense is None else float((top1 == dense.argmax(1)).mean()),
        sites=sites,
        accuracy=_accuracy(result.logits, reference),
        drop=None if dense is None or "labels" not in reference else intervals.drop(dense.argmax(1), top1, reference["labels"]),
    )


def _of_features(
    result: Result,
    expected: NDArray[Any],
    dense: NDArray[Any] | None,
    agreeing: NDArray[np.bool_],
    sites: list[SiteComparison],
    heads: dict[str, tuple[int, ...]],
) -> Comparison:
    """The comparison of a model without classes, over the images whose decisions agree or were followed."""
    own = (
        figures(result.logits[agreeing], expected[agreeing], None if dense is None else dense[agreeing], heads)
        if agreeing.any()
        else []
    )
    worst_of = max((one.max_abs for one in own), default=float("nan"))
    return Comparison(len(result.logits), worst_of, int(agreeing.sum()), None, None, sites, features=own)


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
    found = [decisions_gate(comparison, gates)]
    if comparison.features is not None:
        return found + _feature_gates(comparison.features, gates)
    if gates.logits_max_abs is not None:
        seen = comparison.logits_max_abs
        apart = comparison.images - comparison.logits_compared
        over = f"over {comparison.logits_compared} images: decisions of {apart} differ, or may, within the margin"
        found.append(
            Gate("logits_max_abs", gates.logits_max_abs, seen, bool(seen <= gates.logits_max_abs), note=over if apart else "")
        )
    if gates.top1_agreement is not None and comparison.top1_agreement is not None:
        seen = comparison.top1_agreement
        found.append(
            Gate(
                "top1_agreement",
                gates.top1_agreement,
                seen,
                seen >= gates.top1_agreement,
                interval=comparison.top1_agreement_interval,
            )
        )
    if gates.top1_drop is not None and comparison.drop is not None:
        found.append(drop_gate(comparison.drop, gates.top1_drop))
    if gates.dense_top1 is not None and comparison.accuracy is not None:
        found.append(dense_gate(comparison.accuracy["dense"], comparison.images, gates.dense_top1))
    return found


def decisions_gate(comparison: Comparison, gates: Gates) -> Gate:
    """Holds when no flip was illegal, and flips that could not have been illegal were compared by what follows from them."""
    illegal = sum(site.illegal_flips for site in comparison.sites)
    decisions, could = (sum(getattr(site, name) for site in comparison.sites) for name in ("decisions", "could_fail"))
    unproved = comparison.images - comparison.logits_compared
    proved = power.proved(decisions, could, unproved)
    return Gate("decisions", 0, illegal, not illegal and proved, note=power.note(decisions, could, gates.flip_margin, unproved))


def _feature_gates(outputs: list[OutputFigures], gates: Gates) -> list[Gate]:
    """Gates of features; without an image to compare they do not hold."""
    names = ("features_max_abs", "cosine_mean", "cosine_p1")
    seen = worst(outputs) if outputs else dict.fromkeys(names, float("nan"))
    limits = dict(zip(names, (gates.logits_max_abs, gates.cosine_mean, gates.cosine_p1), strict=True))
    found = []
    for name, limit in limits.items():
        if limit is not None:
            holds = seen[name] <= limit if name == "features_max_abs" else seen[name] >= limit
            found.append(Gate(name, limit, seen[name], bool(holds)))
    return found


def drop_gate(drop: intervals.Drop, limit: float) -> Gate:
    """The gate on accuracy: holds when the interval's upper end is below the limit, fails when its lower end is above."""
    holds, needed = drop.decides(limit), None
    if holds is None and (needed := drop.images_needed(limit)) is not None:
        needed -= drop.images
    return Gate(
        "top1_drop",
        limit,
        drop.points,
        bool(holds),
        " points",
        interval=(drop.low, drop.high),
        undecided=holds is None,
        more=needed,
    )


def dense_gate(percent: float, images: int, limit: float) -> Gate:
    """The gate on the dense model's own accuracy: holds when its Wilson interval lies above the limit, fails when it lies below."""
    hits = round(percent * images / 100)
    low, high = (100 * end for end in intervals.wilson(hits, images))
    undecided = low < limit <= high
    needed = intervals.images_needed(hits, images, limit / 100) if undecided else None
    more = None if needed is None else needed - images
    return Gate("dense_top1", limit, percent, low >= limit, " %", interval=(low, high), undecided=undecided, more=more)


def status(gates: Sequence[Gate]) -> str:
    """One of "passed", "failed", "undecided": where no gate fails and one cannot be decided on so few images."""
    if all(gate.passed for gate in gates):
        return "passed"
    return "undecided" if all(gate.passed or gate.undecided for gate in gates) else "failed"


def failures(comparison: Comparison, gates: Gates) -> list[Gate]:
    """The gates that do not hold."""
    return [gate for gate in gate_list(comparison, gates) if not gate.passed]
