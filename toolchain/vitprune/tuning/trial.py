"""One trial: what is tried at a place, turned to the budget on a few images, judged on them, then on all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from vitprune.calibration.bench import Bench
from vitprune.calibration.calibrating import solve
from vitprune.errors import RecipeError
from vitprune.methods.base import Geometry
from vitprune.methods.knob import Dimension, Knob
from vitprune.tuning.budget import Budget, macs_share, with_capacity
from vitprune.tuning.candidates import Candidate, Start, starts
from vitprune.tuning.evaluating import Run, fidelity, run
from vitprune.tuning.knees import snapped
from vitprune.tuning.outcome import Outcome, leaders
from vitprune.tuning.table import Curve

UNREACHED = 10.0  # loss of a setting that cannot meet the budget; all others are below
DOWN = (0.85, 0.7, 0.55)  # shares of the budget that good settings are turned down to
ROOM = 0.999  # a few images cost a little less or more than all of them
TRIES = 5
TURNING, ALIKE = 32, 2  # images
STEEP = 1.6  # a measured latency falls more slowly than the MACs by which it is turned
NEAR = 3e-3  # share of the budget that may be left over


class Spending(Protocol):
    """What the budget counts.

    slack: share of the budget that a setting may leave over before it is turned up again. direct: `scouted` estimates what `exact`
    says, on fewer images. curve: a block's time by token count, where one was measured.
    """

    slack: float
    direct: bool
    curve: Curve | None

    def scouted(self, bench: Bench, prune: dict[str, Any], counts: NDArray[np.int64]) -> float:
        """An estimate on a few images, by which a knob is turned."""

    def exact(self, bench: Bench, prune: dict[str, Any], counts: NDArray[np.int64]) -> float:
        """What the setting is charged, from the counts [images,sites] of all images."""


class Macs:
    """Share of the dense MACs; an estimate on a few images is near enough to need no turning up."""

    slack = 1.0
    direct = True
    curve: Curve | None = None

    def scouted(self, bench: Bench, prune: dict[str, Any], counts: NDArray[np.int64]) -> float:
        """See `Spending`."""
        return macs_share(bench, prune, counts)

    exact = scouted


@dataclass
class Search:
    """All that trials share.

    images: float32 [n,C,H,W], the first `scouts` of them spread evenly. dense: outputs of the dense model on them. trials: places.
    """

    candidates: Sequence[Candidate]
    images: NDArray[np.float32]
    scouts: int
    dense: NDArray[np.float32]
    geometry: Geometry
    budget: Budget
    spending: Spending
    trials: int
    starts: list[Start] = field(init=False)

    def __post_init__(self) -> None:
        self.starts = starts(self.candidates)
        self.free = [one for one in self.candidates if not one.given]
        self.turned_down = min(len(DOWN) * 5, self.trials // 6)

    def named(self, name: str) -> Candidate:
        """A candidate by its name."""
        return next(one for one in self.candidates if one.name == name)


@dataclass(frozen=True)
class Proposal:
    """What to try: a candidate with changed keys, turned by the knob to a share of the budget (None: as it is).

    start: number of the start whose knob it is.
    """

    candidate: Candidate
    kind: str
    keys: dict[str, Any]
    knob: Knob | None
    shape: dict[str, Any] | None = None
    aim: float = 1.0
    start: int | None = None


def outcomes(study: optuna.Study) -> list[Outcome]:
    """All that were evaluated on all images, in order."""
    return [outcome_of(one) for one in study.get_trials(deepcopy=False) if "outcome" in one.user_attrs]


def outcome_of(trial: FrozenTrial) -> Outcome:
    """What a trial stored."""
    return Outcome(**trial.user_attrs["outcome"])


def propose(search: Search, study: optuna.Study, trial: optuna.Trial, place: int) -> Proposal | None:
    """What a place is for: the starts, then the sampler's, at last good ones turned down for the front (None: nothing is left)."""
    if place < len(search.starts):
        start = search.starts[place]
        return Proposal(start.candidate, start.kind, start.keys, start.knob, start=place)
    last = place - (search.trials - search.turned_down)
    if last >= 0 or not search.free:
        return _down(search, study, max(last, 0) if search.free else place - len(search.starts))
    candidate = search.named(trial.suggest_categorical("method", [one.name for one in search.free]))
    shape = {one.name: _suggest(trial, candidate.name, one) for one in candidate.dimensions(search.geometry)}
    assert candidate.knob is not None
    keys, knob = candidate.knob.shaped(shape, search.geometry)
    return Proposal(candidate, "searched", keys, knob, shape)


def _down(search: Search, study: optuna.Study, number: int) -> Proposal | None:
    before = [one for one in outcomes(study) if one.spent <= search.budget.share]
    found = leaders(before, 5)
    if not found:
        return None
    one = found[number % len(found)]
    candidate = search.named(one.candidate)
    knob: Knob | None = candidate.knob if one.start is None else search.starts[one.start].knob
    assert knob is not None
    if one.shape is not None:
        _, knob = knob.shaped(one.shape, search.geometry)
    return Proposal(candidate, "front", one.prune, knob, one.shape, DOWN[number // len(found) % len(DOWN)], one.start)


def _suggest(trial: optuna.Trial, method: str, dimension: Dimension) -> Any:
    name = f"{method}.{dimension.name}"
    if dimension.values:
        return trial.suggest_categorical(name, list(dimension.values))
    if dimension.integer:
        return trial.suggest_int(name, int(dimension.low), int(dimension.high))
    return round(trial.suggest_float(name, dimension.low, dimension.high), 4)


def carry_out(search: Search, study: optuna.Study, trial: optuna.Trial, proposal: Proposal | None) -> Outcome | None:
    """Turn, judge, store; None where the trial was cut short, with the reason among its attributes."""

    def cut(reason: str, state: TrialState = TrialState.PRUNED, value: float | None = None) -> Outcome | None:
        trial.set_user_attr("reason", reason)
        study.tell(trial, value, state=state)
        return None

    if proposal is None:
        return cut("nothing to turn down")
    candidate = proposal.candidate
    bench = Bench(candidate.module, candidate.with_keys(proposal.keys), search.images[: search.scouts])
    target = search.budget.share * proposal.aim
    outcome: Outcome | None = None
    nearest: Attempt | None = None
    aim = target * ROOM
    try:
        for attempt in range(TRIES):
            prune = turn(search, bench, proposal, aim)
            few = run(candidate.module, bench.with_prune(prune), search.images[: search.scouts])
            if proposal.kind == "searched" and not attempt and _poor(search, trial, few):
                return cut("far behind on the first images")
            ahead = _ahead(search, bench, prune, few)
            nearest = _nearer(nearest, Attempt(prune, few, ahead), target)
            again = proposal.knob is not None and attempt + 1 < TRIES
            if again and not _met(search, ahead, target, aim):
                aim = min(1.0, aim * ROOM * (target / ahead) ** (1 if search.spending.direct else STEEP))
                continue  # not all images yet
            outcome = _whole(search, trial, proposal, bench, nearest)
            if not again or not search.spending.direct or outcome.spent <= target:
                break
            aim, nearest = aim * ROOM * target / outcome.spent, None
    except RecipeError as error:
        if outcome is None and nearest is None:
            return cut(f"{error.code} {error.message}", TrialState.COMPLETE, UNREACHED)
        if outcome is None and nearest is not None:
            outcome = _whole(search, trial, proposal, bench, nearest)
    assert outcome is not None
    spent = outcome.spent
    trial.set_user_attr("outcome", outcome.document())
    over = max(0.0, spent - search.budget.share)
    study.tell(trial, outcome.fidelity.loss if not over else UNREACHED / 2 + over)
    return outcome


@dataclass(frozen=True)
class Attempt:
    """Method keys, what they did to the first images, and what they cost by those or by a measurement."""

    prune: dict[str, Any]
    few: Run
    ahead: float


def _ahead(search: Search, bench: Bench, prune: dict[str, Any], few: Run) -> float:
    """What a setting costs, before all images are run: by the first ones, or measured."""
    count = search.spending.scouted if search.spending.direct else search.spending.exact
    return count(bench, prune, few.counts)


def _met(search: Search, ahead: float, target: float, aim: float) -> bool:
    """Whether a cost is within the target and not too far below it; at an aim of 1 there is nothing to turn up."""
    return ahead <= target and (ahead >= (1 - search.spending.slack) * target or aim >= 1)


def _nearer(one: Attempt | None, other: Attempt, target: float) -> Attempt:
    """Of two attempts the dearer one within the target, else the cheaper one."""
    if one is None or (other.ahead <= target and (one.ahead > target or other.ahead > one.ahead)):
        return other
    return other if one.ahead > target and other.ahead < one.ahead else one


def _whole(search: Search, trial: optuna.Trial, proposal: Proposal, bench: Bench, attempt: Attempt) -> Outcome:
    """Run the other images too."""
    recipe = bench.with_prune(attempt.prune)
    every = attempt.few
    if _more(search):
        every = every.followed_by(run(bench.module, recipe, search.images[search.scouts :]))
    spent = search.spending.exact(bench, attempt.prune, every.counts) if search.spending.direct else attempt.ahead
    return _outcome(search, trial, proposal, bench, recipe.to_dict()["prune"], every, spent)


def turn(search: Search, bench: Bench, proposal: Proposal, aim: float) -> dict[str, Any]:
    """Method keys whose estimated cost meets the aim; in padded shapes with capacities, and on the knees of a latency table.

    A knob is turned on the first `TURNING` images; where all images keep the same counts, cost is measured on `ALIKE` of them.
    """
    if proposal.knob is None:
        return {}
    turning = Bench(bench.module, bench.recipe, bench.images[:TURNING])
    alike = Bench(bench.module, bench.recipe, bench.images[:ALIKE])
    constant: list[bool] = []

    def spent(prune: dict[str, Any]) -> float:
        chosen = alike if constant == [True, True, True] else turning  # the two ends, and something between them
        counts = chosen.measure(prune).counts
        if len(constant) < 3:
            constant.append(bool((counts == counts[:1]).all()))
        return search.spending.scouted(turning, prune, counts)

    prune = solve(turning, proposal.knob, aim, spent, lambda text: None, near=NEAR)
    if bench.recipe.graph.shapes != "padded":
        return prune
    prune = with_capacity(bench, prune, bench.measure(prune).counts)
    curve = search.spending.curve
    return prune if curve is None else snapped(bench, prune, curve)


def _more(search: Search) -> bool:
    return search.scouts < len(search.images)


def _poor(search: Search, trial: optuna.Trial, few: Run) -> bool:
    """Whether the first images say that the rest is not worth running."""
    if not _more(search):
        return False
    trial.report(fidelity(few.logits, search.dense[: search.scouts], search.geometry.classes > 0).loss, step=search.scouts)
    return trial.should_prune()


def _outcome(
    search: Search, trial: optuna.Trial, proposal: Proposal, bench: Bench, prune: dict[str, Any], every: Run, spent: float
) -> Outcome:
    found = fidelity(every.logits, search.dense, search.geometry.classes > 0)
    return Outcome(
        number=trial.number, candidate=proposal.candidate.name, kind=proposal.kind, prune=prune, shape=proposal.shape,
        start=proposal.start, macs=macs_share(bench, prune, every.counts), spent=spent, agreement=found.agreement, error=found.error,
        tokens=[round(float(value), 2) for value in every.counts.mean(axis=0)],
    )  # fmt: skip
