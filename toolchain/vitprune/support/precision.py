"""Numeric types by name: how finely they resolve, what they hold, and what may differ between two computations in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

HALF = ("fp16", "bf16")
# Half the distance from 1 to the next number above it: the largest relative error of one rounding (IEEE 754; bfloat16 has 8 bits).
ROUNDOFF = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
# What fp16 holds before it becomes infinite, less a little for sums that grow on other images than those looked at.
OVERFLOW = {"fp16": 6.0e4}
# Two computations with the same roundings still differ: sums are taken in another order, a value on the edge between two neighbours
# rounds the other way, and later layers carry that on. In units of one rounding: of the largest logit, and of a decision margin.
LOGIT_ROUNDINGS = 8.0
MARGIN_ROUNDINGS = 4.0


def layer_names(depth: int) -> list[str]:
    """Layers that take another type, by timm's names; "attn.qkv" stands for q, k, v and the two products of attention."""
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    return [f"blocks.{block}.{part}" for block in range(depth) for part in parts]


def chosen(names: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """The names that any of the shell patterns fits."""
    return {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}


def unused(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The patterns that fit no name."""
    return [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]


def logits_tolerance(mode: str, largest: float) -> float:
    """How far logits of two computations in a half type may lie apart, where the largest has the size `largest`."""
    return LOGIT_ROUNDINGS * ROUNDOFF[mode] * largest


def margin_tolerance(mode: str, scale: float = 1.0) -> float:
    """How close to its opposite a decision must be for two computations in a half type to disagree on it; scale: size of a score."""
    return MARGIN_ROUNDINGS * ROUNDOFF[mode] * scale
