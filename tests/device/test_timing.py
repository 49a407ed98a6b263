"""The benchmark, on a clock that the test winds."""

from __future__ import annotations

import pytest

from vitprune.device.timing import Variant, measure, quantile


class Machine:
    """A clock; variants cost what they cost times the mood of the moment."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, list[str]()

    def variant(self, name: str, images: int, cost: float, drift: float = 0.0) -> Variant:
        def call() -> None:
            self.calls.append(name)
            self.now += cost * (1 + drift * len(self.calls))

        return Variant(name, images, call)

    def clock(self) -> float:
        return self.now


def test_medians_ratios_and_warm_up() -> None:
    machine = Machine()
    variants = [machine.variant("dense", 1, 0.010), machine.variant("pruned", 4, 0.020)]
    dense, pruned = measure(variants, rounds=5, warmup=2, clock=machine.clock)
    assert machine.calls[:4] == ["dense", "dense", "pruned", "pruned"]
    assert len(machine.calls) == 2 * (2 + 5)
    assert (dense.median_ms, dense.ratio) == (pytest.approx(10), pytest.approx(1))
    assert pruned.ratio == pytest.approx(0.5)
    assert pruned.images_per_second == pytest.approx(200)


def test_every_round_has_every_variant_in_changing_order() -> None:
    machine = Machine()
    names = ["a", "b", "c"]
    measure([machine.variant(name, 1, 0.01) for name in names], rounds=12, warmup=0, clock=machine.clock)
    rounds = [tuple(machine.calls[i : i + 3]) for i in range(0, 36, 3)]
    assert all(sorted(one) == names for one in rounds)
    assert len(set(rounds)) > 2


def test_a_slowing_machine_does_not_move_the_ratio() -> None:
    """Clocks fall to a fifth during the run; measured one after the other the second variant would look 2x slower."""
    machine = Machine()
    variants = [machine.variant("a", 1, 0.01, drift=0.1), machine.variant("b", 1, 0.01, drift=0.1)]
    timings = measure(variants, rounds=30, warmup=0, clock=machine.clock)
    assert timings[1].ratio == pytest.approx(1, abs=0.1)


def test_quantiles() -> None:
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile([1, 2, 3, 4], 0.95) == pytest.approx(3.85)
    assert quantile([7], 0.95) == 7


def test_refused() -> None:
    machine = Machine()
    one = machine.variant("a", 1, 0.01)
    for variants, rounds in (([], 1), ([one], 0), ([one, one], 1)):
        with pytest.raises(ValueError, match="different names"):
            measure(variants, rounds=rounds)
