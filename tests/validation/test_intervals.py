"""A gate on accuracy passes when enough images say so, and never on too few."""

from __future__ import annotations

import numpy as np
import pytest

from vitprune.backends import Result
from vitprune.recipe import Gates
from vitprune.reports.junit import junit_xml
from vitprune.validation import intervals
from vitprune.validation.compare import compare, dense_gate, gate_list, rounded
from vitprune.validation.verdict import Verdict


def verdict(images: int, lost: int, won: int, limit: float) -> Verdict:
    """Of a run that differs from the dense model on lost + won images."""
    right, wrong = np.array([0.0, 1.0], np.float32), np.array([1.0, 0.0], np.float32)
    dense, pruned = np.tile(right, (images, 1)), np.tile(right, (images, 1))
    pruned[:lost] = wrong
    dense[lost : lost + won] = wrong
    kept = np.zeros((images, 1), np.int64)
    arrays = {"logits": pruned, "dense_logits": dense, "labels": np.ones(images, np.int64), "kept_0": kept}
    gates = Gates(top1_drop=limit)
    comparison = compare(Result(pruned, [kept]), arrays, [0], gates)
    return Verdict("b", "onnxruntime", "r", "d", comparison, gate_list(comparison, gates), {"dense": 1, "pruned": 1, "ratio": 1})


def test_published_interval():
    """Fagerland, Lydersen and Laake, Statistics in Medicine 33, 2014: 1 and 7 of 21 pairs, Tango's interval -0.517 to -0.026."""
    low, high = intervals.paired(1, 7, 21)
    assert (round(low, 3), round(high, 3)) == (-0.517, -0.026)
    assert intervals.paired(7, 1, 21) == pytest.approx((-high, -low), abs=1e-9)
    assert intervals.mcnemar(1, 7) == pytest.approx(0.0703, abs=5e-5)


def test_wilson_interval():
    assert intervals.wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert intervals.wilson(10, 10) == pytest.approx((0.7225, 1), abs=1e-4)
    assert intervals.wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)  # Newcombe, Statistics in Medicine 17, 1998


def test_the_interval_covers():
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(300, [0.04, 0.02, 0.94], 2000)
    ends = [intervals.paired(lost, won, 300) for lost, won, _ in drawn]
    assert 0.935 < np.mean([low <= 0.02 <= high for low, high in ends]) < 0.97


@pytest.mark.parametrize(
    ("images", "lost", "won", "limit", "status"),
    [
        (1000, 30, 16, 3.0, "passed"),
        (10, 0, 0, 3.0, "undecided"),  # ten images that agree once passed any limit
        (1000, 27, 17, 2.0, "undecided"),
        (1000, 22, 0, 2.0, "undecided"),  # once failed
        (1000, 80, 10, 3.0, "failed"),
        (188, 0, 0, 2.0, "undecided"),
        (189, 0, 0, 2.0, "passed"),
    ],
)
def test_gate_on_accuracy(images, lost, won, limit, status):
    found = verdict(images, lost, won, limit)
    gate = found.gates[-1]
    assert gate.name == "top1_drop"
    assert found.status == status, gate.text()
    assert found.passed == (status == "passed")
    document = found.document()
    assert (document["status"], document["exit_code"]) == (status, 0 if status == "passed" else 1)
    low, high = document["gates"][-1]["interval"]
    assert low <= gate.seen <= high
    assert ("undecided" in gate.text()) == (status == "undecided")
    assert ('failures="0"' in junit_xml([found.document()])) == (status == "passed")


@pytest.mark.parametrize(("images", "lost", "won", "limit"), [(10, 0, 0, 2.0), (1000, 27, 17, 2.0), (200, 8, 1, 2.0)])
def test_so_many_more_images_decide(images, lost, won, limit):
    gate = verdict(images, lost, won, limit).gates[-1]
    assert gate.undecided
    assert f"{rounded(gate.more):,} more images" in gate.text()
    for count, decided in ((images + gate.more, True), (images + gate.more - 1, False)):
        low, high = intervals.paired(lost / images * count, won / images * count, count)
        assert (100 * high < limit or 100 * low > limit) == decided


def test_a_drop_on_the_limit_is_never_decided():
    gate = verdict(100, 2, 0, 2.0).gates[-1]
    assert gate.undecided
    assert gate.more is None
    assert "no number of images" in gate.text()


def test_a_failed_gate_wins_over_an_undecided_one():
    found = verdict(10, 0, 0, 2.0)
    broken = found.gates[0].__class__("logits_max_abs", 1e-4, 1.0, False)
    assert Verdict("b", "o", "r", "d", found.comparison, [broken, *found.gates], {}).status == "failed"


def test_agreement_has_an_interval_and_stays_a_point_estimate():
    gate = next(gate for gate in verdict(100, 0, 0, 2.0).gates if gate.name == "top1_agreement")
    assert gate.passed
    assert gate.document()["interval"] == [pytest.approx(0.963, abs=1e-3), 1.0]


def test_rounding_is_upwards():
    assert [rounded(n) for n in (7, 99, 101, 829, 12345)] == [7, 99, 110, 830, 13000]


def test_images_that_decide_on_a_share():
    """90 of 100 have 0.826 to 0.945: 0.85 lies within, and does no more with as many hits among the number that is told."""
    needed = intervals.images_needed(90, 100, 0.85)
    assert needed is not None
    assert intervals.wilson(90, 100)[0] < 0.85 < intervals.wilson(90, 100)[1]
    assert intervals.wilson(round(0.9 * needed), needed)[0] >= 0.85
    assert intervals.wilson(round(0.9 * (needed - 5)), needed - 5)[0] < 0.85
    assert intervals.images_needed(85, 100, 0.85) is None


@pytest.mark.parametrize(
    ("percent", "limit", "passed", "undecided"), [(92, 85, True, False), (70, 85, False, False), (86, 85, False, True)]
)
def test_the_dense_models_own_accuracy_is_a_gate(percent, limit, passed, undecided):
    gate = dense_gate(percent, 400, limit)
    assert (gate.passed, gate.undecided, gate.seen) == (passed, undecided, percent)
    assert (gate.more is not None) == undecided
