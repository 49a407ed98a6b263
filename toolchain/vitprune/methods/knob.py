"""What calibration turns: the one setting of a method that moves its cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from vitprune.calibration.bench import Bench
    from vitprune.methods.base import Geometry, Site


@dataclass(frozen=True)
class Dimension:
    """Something besides the knob that a search varies: one of `values`, or a number from `low` to `high`, both included."""

    name: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    integer: bool = False

    @classmethod
    def whole(cls, name: str, low: int, high: int) -> Dimension:
        """Whole numbers from low to high."""
        return cls(name, low=low, high=max(low, high), integer=True)


def every(first: int, step: int, depth: int) -> list[int]:
    """Blocks first, first + step, ... below the depth."""
    return list(range(min(first, depth - 1), depth, step))


def places(geometry: Geometry, first: int = 1) -> list[Dimension]:
    """Where stages lie: the first one, and every how many blocks there is another."""
    depth = geometry.depth
    return [Dimension.whole("first", min(first, depth - 1), max(depth - 2, 0)), Dimension.whole("step", 1, max(1, depth // 3))]


def falling(stages: Sequence[int], power: float) -> list[float]:
    """For every stage the share of stages from it on, to a power: 1 for the first, falling to the last; 0 = all 1."""
    return [float(((len(stages) - place) / len(stages)) ** power) for place in range(len(stages))]


def leaving(sites: Sequence[Site[Any]], rows: Sequence[int]) -> list[int]:
    """How many rows leave at every site so that `rows` of them are left."""
    before = [sites[0].patches, *rows]
    return [max(0, one - other) for one, other in zip(before, rows, strict=False)]


class Knob(ABC):
    """One number.

    Class attributes:
        integer: only whole numbers make sense. rising: the cost rises with the number. constant: every image keeps the same counts, so
            that one image says what a value costs. schedules: how the method can spread its reduction over the blocks, by name;
            empty = there is one way only.
    """

    schedules: ClassVar[tuple[str, ...]] = ()

    integer: ClassVar[bool] = False
    rising: ClassVar[bool] = True
    constant: ClassVar[bool] = False

    @abstractmethod
    def bounds(self, bench: Bench) -> tuple[float, float]:
        """Lowest and highest value worth trying for the bench's model and recipe."""

    @abstractmethod
    def settings(self, bench: Bench, value: float) -> dict[str, Any]:
        """Method keys at a value; may measure on the bench."""

    def forms(self, schedule: str) -> list[Knob]:
        """The knobs that a schedule of `schedules` stands for; calibration keeps the one that agrees best with the dense model."""
        return [self]

    def dimensions(self, geometry: Geometry) -> list[Dimension]:
        """What a search varies besides this number (`vitprune tune`); none = the method's defaults."""
        return []

    def beginnings(self) -> list[tuple[dict[str, Any], Knob]]:
        """What calibration alone would try, as method keys and knobs: a search begins with it."""
        return [({}, form) for form in (self.forms(self.schedules[-1]) if self.schedules else [self])]

    def shaped(self, chosen: dict[str, Any], geometry: Geometry) -> tuple[dict[str, Any], Knob]:
        """Method keys for a value of every dimension, and the knob that then meets a budget."""
        return {}, self

    def with_rows(self, params: Any, sites: Sequence[Site[Any]], rows: Sequence[int]) -> dict[str, Any]:
        """Method keys with which the sites of `params` leave so many rows behind the prefix; none where the method has no constant counts."""
        return {}

    def show(self, value: float) -> str:
        """A value, for people."""
        return f"{value:.5g}"
