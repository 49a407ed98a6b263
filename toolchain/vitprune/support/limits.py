"""How much of somebody else's file is read: enough for every honest use, and lifted by `--no-limits`."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1 << 30


class BeyondLimit(OSError):
    """An input that is larger than what is read unless asked; its text says how large, and how to lift the limit."""


@dataclass
class Limits:
    """Switched off as a whole.

    text: bytes of a recipe, target or manifest. array: bytes of all arrays of an .npz, unpacked. pixels: of one image file.
    values: numbers that a model takes as one input. weights: numbers that a model made from a recipe's arguments holds. tokens: patches
    of an image, whose squares attention computes.
    """

    on: bool = True
    text: int = 16 << 20
    array: int = 2 * GIB
    pixels: int = 50_000_000
    values: int = 1 << 26
    weights: int = 1 << 31
    tokens: int = 1 << 14


limits = Limits()


def require(what: str, size: int, allowed: int, unit: str = "bytes") -> None:
    """Refuse a size beyond its limit, unless limits are off.

    Raises:
        BeyondLimit: naming both numbers.
    """
    if limits.on and size > allowed:
        raise BeyondLimit(f"{what} has {size:,} {unit}, more than the {allowed:,} that are read without --no-limits")
