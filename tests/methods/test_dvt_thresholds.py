"""DVT: thresholds against the official golden, the published toy, and brute force."""

import itertools

import numpy as np
import pytest
from dvt_support import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vitprune.errors import RecipeError
from vitprune.methods.dvt.thresholds import evaluate, official, official_fractions, recipe_thresholds, solve

TOY = np.array([[0.9, 0.3, 0.8, 0.6, 0.2, 0.7, 0.5, 0.4], [0.95, 0.6, 0.85, 0.9, 0.3, 0.8, 0.7, 0.5]])
COSTS = (1.0, 3.0, 8.0)


def exits_of(certainty, thresholds):
    exits = np.full(certainty.shape[1], 3)
    for number in (2, 1):
        if thresholds[number - 1] is not None:
            exits[certainty[number - 1] >= thresholds[number - 1]] = number
    return exits.tolist()


@pytest.mark.parametrize("problem", ["large", "small"])
def test_golden(problem):
    with np.load(GOLDEN / "dvt_thresholds.npz") as golden:
        probabilities, targets = golden[f"{problem}_probs"], golden[f"{problem}_targets"]
        certainty, correct = probabilities.max(-1)[:2], probabilities.argmax(-1) == targets
        disabled = 0
        for case, p in enumerate(golden[f"{problem}_p"]):
            fractions = official_fractions(int(p))
            np.testing.assert_allclose(fractions, golden[f"{problem}_exit_fractions"][case], atol=1e-6)
            found = official(certainty, fractions)
            np.testing.assert_array_equal(np.float32(found), golden[f"{problem}_thresholds"][case])
            chosen = recipe_thresholds(found)
            disabled += chosen.count(None)
            assert exits_of(certainty, chosen) == golden[f"{problem}_exit_index"][case].tolist()
            outcome = evaluate(certainty, correct, COSTS, chosen)
            assert outcome.accuracy == pytest.approx(golden[f"{problem}_accuracy"][case], abs=1e-9)
            assert outcome.mean_cost == pytest.approx(golden[f"{problem}_mean_cost"][case], abs=1e-5)
        assert disabled == {"large": 0, "small": 2}[problem]  # the quirk is in the small problem


def test_toy():
    found = official(TOY, (0.5, 0.25, 0.25))
    assert found == [0.6, 0.6, -1e8]
    assert exits_of(TOY, found[:2]) == [1, 2, 1, 1, 3, 1, 2, 3]
    assert evaluate(TOY, np.ones((3, 8), bool), COSTS, found[:2]).mean_cost == 3.25


def test_toy_quirk_floor_of_zero_disables_the_exit():
    found = official(TOY, (0.1, 0.3, 0.6))
    assert found == [1e8, 0.9, -1e8]
    assert recipe_thresholds(found) == [None, 0.9]


def test_more_wanted_than_left_disables_the_exit():
    assert official(TOY, (0.75, 0.5, 0.1)) == [0.4, 1e8, -1e8]


@pytest.mark.parametrize(
    ("p", "wanted"), [(20, (1 / 3, 1 / 3, 1 / 3)), (1, (0.950, 0.0475, 0.0024)), (59, (0.079, 0.233, 0.688))]
)
def test_official_family(p, wanted):
    np.testing.assert_allclose(official_fractions(p), wanted, atol=5e-4)


@st.composite
def problems(draw):
    count = draw(st.integers(1, 9))
    grid = st.integers(1, 6).map(lambda v: v / 7)  # few values: ties are common
    certainty = draw(arrays.arrays(np.float64, (2, count), elements=grid))
    correct = draw(arrays.arrays(np.bool_, (3, count)))
    steps = draw(st.lists(st.floats(0.25, 4), min_size=3, max_size=3))
    return certainty, correct, np.cumsum(steps)


def all_outcomes(certainty, correct, costs):
    candidates = [[None, *np.unique(values).tolist()] for values in certainty]
    return [evaluate(certainty, correct, costs, pair) for pair in itertools.product(*candidates)]


@settings(max_examples=80, deadline=None)
@given(problems(), st.data())
def test_solver_equals_brute_force(problem, data):
    certainty, correct, costs = problem
    everything = all_outcomes(certainty, correct, costs)
    goal = data.draw(st.sampled_from(everything))
    cheap = solve(certainty, correct, costs, accuracy=goal.accuracy)
    assert cheap.accuracy >= goal.accuracy - 1e-9
    assert cheap.mean_cost == pytest.approx(min(o.mean_cost for o in everything if o.accuracy >= goal.accuracy - 1e-9))
    good = solve(certainty, correct, costs, budget=goal.mean_cost)
    assert good.mean_cost <= goal.mean_cost * (1 + 1e-9)
    within = [o for o in everything if o.mean_cost <= goal.mean_cost * (1 + 1e-12)]
    assert good.accuracy == pytest.approx(max(o.accuracy for o in within))
    assert good.accuracy >= goal.accuracy - 1e-9


@settings(max_examples=80, deadline=None)
@given(problems(), st.tuples(*[st.floats(0, 1)] * 2), st.tuples(*[st.floats(0, 1)] * 2))
def test_cost_never_rises_when_thresholds_fall(problem, one, other):
    certainty, correct, costs = problem
    high, low = np.maximum(one, other), np.minimum(one, other)
    upper = evaluate(certainty, correct, costs, high.tolist())
    assert evaluate(certainty, correct, costs, low.tolist()).mean_cost <= upper.mean_cost + 1e-12
    assert evaluate(certainty, correct, costs, [low[0], high[1]]).mean_cost <= upper.mean_cost + 1e-12
    assert evaluate(certainty, correct, costs, [high[0], low[1]]).mean_cost <= upper.mean_cost + 1e-12
    assert upper.mean_cost <= evaluate(certainty, correct, costs, [None, None]).mean_cost + 1e-12
    assert sum(upper.fractions) == pytest.approx(1)


def test_solver_leaves_room_around_its_thresholds():
    rng = np.random.default_rng(0)
    certainty = rng.random((2, 40))
    best = solve(certainty, rng.random((3, 40)) < [[0.5], [0.6], [0.7]], COSTS, budget=4.0)
    first, second = best.thresholds
    for values, limit in ((certainty[0], first), (certainty[1][certainty[0] < first], second)):
        assert limit == values.min() or np.abs(values - limit).min() > 1e-4
    assert 0 < best.fractions[0] < 1


def test_quantiles_bound_the_sweep_and_stay_close():
    rng = np.random.default_rng(1)
    certainty, correct = rng.random((2, 1500)), rng.random((3, 1500)) < [[0.5], [0.6], [0.7]]
    exact = solve(certainty, correct, COSTS, budget=4.0, quantiles=2000)
    coarse = solve(certainty, correct, COSTS, budget=4.0, quantiles=64)
    assert exact.accuracy >= coarse.accuracy >= exact.accuracy - 1.0
    assert coarse.mean_cost <= 4.0 + 1e-9


@pytest.mark.parametrize(("goal", "code"), [({"accuracy": 100.0}, "VP155"), ({"budget": 0.5}, "VP155"), ({}, "VP154"), ({"accuracy": 1.0, "budget": 2.0}, "VP154")])  # fmt: skip
def test_goals_that_cannot_be_met(goal, code):
    with pytest.raises(RecipeError) as caught:
        solve(TOY, np.zeros((3, 8), bool), COSTS, **goal)
    assert caught.value.code == code
    assert caught.value.next_step


def test_no_images():
    with pytest.raises(RecipeError, match="VP154"):
        solve(np.zeros((2, 0)), np.zeros((3, 0), bool), COSTS, budget=1.0)
