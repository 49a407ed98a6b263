"""calibrate: a recipe whose method meets a budget on calibration images, and padded capacities with their overflow rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitprune import methods
from vitprune.calibration.bench import Bench, Measured
from vitprune.errors import RecipeError
from vitprune.methods.base import Method
from vitprune.methods.knob import Knob

STEPS = 16  # halvings of a continuous setting


class OutOfReach(RecipeError):
    """The cheapest setting of a knob costs more than the budget."""


@dataclass(frozen=True)
class Calibrated:
    """Changed method keys, what they do on the images, and the share of images that a capacity cuts (None: no capacities)."""

    prune: dict[str, Any]
    measured: Measured
    overflow: float | None = None
    graph: dict[str, Any] = field(default_factory=dict)


def check_goal(macs: float | None, tokens: float | None, quantile: float | None) -> None:
    """Raise RecipeError VP170 unless there is one budget at most, and something to do."""
    if macs is not None and tokens is not None:
        raise RecipeError(
            170, "there are two budgets", cause="--budget-macs and --mean-tokens exclude each other", next_step="give one"
        )
    if macs is None and tokens is None and quantile is None:
        raise RecipeError(
            170, "there is nothing to calibrate", cause="no budget and no capacities were asked for",
            next_step="--budget-macs 0.65, --mean-tokens 100 or --capacities 0.99",
        )  # fmt: skip
    if macs is not None and not 0 < macs <= 1:
        raise RecipeError(170, f"--budget-macs {macs:g}", cause="it is a share of the dense MACs, above 0 and at most 1")


def calibrate(
    bench: Bench, *, macs: float | None, tokens: float | None, quantile: float | None, report: Callable[[str], None],
    schedule: str | None = None,
) -> Calibrated:  # fmt: skip
    """Find the setting closest below a budget, then capacities.

    Args:
        macs: share of the dense MACs, mean over images. tokens: mean number of patches that a site leaves. quantile: of the kept
            counts that a padded capacity must hold, per site. schedule: of the knob's `schedules`; of several forms the one that
            agrees best with the dense model on the images is kept; forms that cannot get as cheap are passed over.

    Raises:
        RecipeError: VP170 goals, VP171 the budget is out of reach, VP172 no such setting, VP173 counts are constant, VP174 no such
            schedule.
    """
    check_goal(macs, tokens, quantile)
    prune: dict[str, Any] = {}
    if macs is not None or tokens is not None:
        prune = _best(bench, macs, tokens, schedule, report)
    measured = bench.measure(prune)
    if quantile is None:
        return Calibrated(prune, measured)
    if "capacity" not in type(bench.recipe.prune).model_fields:
        raise RecipeError(
            173, f"{bench.method.name} needs no capacities", cause="it keeps the same number of tokens of every image",
            next_step="--set graph.shapes=padded at export, or leave out --capacities",
        )  # fmt: skip
    capacity = [max(1, int(np.ceil(value))) for value in np.quantile(measured.counts, quantile, axis=0)]
    prune = prune | {"capacity": capacity}
    cut = bench.measure(prune, padded=True)
    return Calibrated(prune, cut, float(cut.overflow.mean()), {"shapes": "padded"})


def _best(
    bench: Bench, macs: float | None, tokens: float | None, schedule: str | None, report: Callable[[str], None]
) -> dict[str, Any]:
    """The setting within the budget; of several schedules the one whose predictions, then logits, are nearest to the dense model's."""
    knob = _knob(bench.method)
    if schedule is None:
        return _solved(bench, knob, macs, tokens, report)
    if schedule not in knob.schedules:
        scheduled = [name for name in methods.names() if (one := methods.get(name).knob) is not None and one.schedules]
        raise RecipeError(
            174, f"{bench.method.name} has no schedule '{schedule}'",
            cause=f"it has {', '.join(knob.schedules)}" if knob.schedules else f"methods with schedules: {', '.join(scheduled)}",
            next_step="leave out --schedule" if not knob.schedules else f"--schedule {knob.schedules[-1]}",
        )  # fmt: skip
    found, refused = [], None
    for form in knob.forms(schedule):
        try:
            prune = _solved(bench, form, macs, tokens, report)
        except OutOfReach as error:  # of one form; a steeper one may get there
            refused = error
            continue
        agreed = bench.agreement(prune)
        report(f"{prune}: {100 * agreed[0]:.1f} % of the dense predictions, cosine of the logits {agreed[1]:.5f}")
        found.append((agreed, prune))
    if not found and refused is not None:
        raise refused
    return max(found, key=lambda one: one[0])[1]


def _solved(bench: Bench, knob: Knob, macs: float | None, tokens: float | None, report: Callable[[str], None]) -> dict[str, Any]:
    """The setting within the one budget that is given."""
    enough = Bench(bench.module, bench.recipe, bench.images[:1]) if knob.constant else bench

    def spent(prune: dict[str, Any]) -> float:
        measured = enough.measure(prune)
        return measured.macs if macs is not None else measured.tokens

    aim = macs if macs is not None else tokens
    assert aim is not None
    return solve(bench, knob, aim, spent, report)


def solve(
    bench: Bench,
    knob: Knob,
    aim: float,
    spent: Callable[[dict[str, Any]], float],
    report: Callable[[str], None],
    near: float = 1e-3,
) -> dict[str, Any]:
    """Bisection on a knob.

    Args:
        bench, knob: what to turn. aim: the budget. spent: what method keys cost, in the budget's unit. near: a share of the aim
            that may be left over.

    Returns:
        Method keys that cost at most the budget, and hardly less where the knob is fine enough.

    Raises:
        OutOfReach: VP171 the cheapest setting costs more.
    """

    def cost(x: float) -> float:
        value = spent(knob.settings(bench, x))
        report(f"{bench.method.name} at {knob.show(x)}: {value:.4g}")
        return value

    low, high = knob.bounds(bench)
    cheap, dear = (low, high) if knob.rising else (high, low)
    least, most = cost(cheap), cost(dear)
    if least > aim:
        raise OutOfReach(
            171, f"a budget of {aim:g} is out of reach", cause=f"the cheapest setting of {bench.method.name} costs {least:.4g}",
            next_step="ask for more, or let tokens leave in earlier or more blocks: prune.stages",
        )  # fmt: skip
    if most <= aim:
        return dict(knob.settings(bench, dear))
    for _ in range(STEPS if not knob.integer else 64):
        middle = (cheap + dear) / 2
        if knob.integer:
            middle = round(middle)
            if middle in (cheap, dear):
                break
        value = cost(middle)
        cheap, dear = (middle, dear) if value <= aim else (cheap, middle)
        if not knob.integer and abs(value - aim) < near * aim and value <= aim:
            break
    return dict(knob.settings(bench, cheap))


def _knob(method: Method) -> Knob:
    """The knob of a method.

    Raises:
        RecipeError: VP172 there is none.
    """
    if (knob := method.knob) is None:
        turnable = [name for name in methods.names() if methods.get(name).knob is not None]
        raise RecipeError(
            172,
            f"{method.name} has no setting to calibrate for a budget",
            cause=f"methods with one: {', '.join(turnable)}",
            next_step="vitprune thresholds BUNDLE for a cascade, or another method",
        )
    return knob
