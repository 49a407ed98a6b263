"""What calibration turns: the one setting of a method that moves its cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from vitprune.calibration.bench import Bench


class Knob(ABC):
    """One number.

    Class attributes:
        integer: only whole numbers make sense. rising: the cost rises with the number. schedules: how the method can spread its
            reduction over the blocks, by name; empty = there is one way only.
    """

    schedules: ClassVar[tuple[str, ...]] = ()

    integer: ClassVar[bool] = False
    rising: ClassVar[bool] = True

    @abstractmethod
    def bounds(self, bench: Bench) -> tuple[float, float]:
        """Lowest and highest value worth trying for the bench's model and recipe."""

    @abstractmethod
    def settings(self, bench: Bench, value: float) -> dict[str, Any]:
        """Method keys at a value; may measure on the bench."""

    def forms(self, schedule: str) -> list[Knob]:
        """The knobs that a schedule of `schedules` stands for; calibration keeps the one that agrees best with the dense model."""
        return [self]

    def show(self, value: float) -> str:
        """A value, for people."""
        return f"{value:.5g}"
