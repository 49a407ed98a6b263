"""Numeric types by name: how finely they resolve, what they hold, and what may differ between two computations in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

HALF = ("fp16", "bf16")
# Types of which a tensor's numbers are steps of a scale that calibration found; weights have one scale per channel.
QUANTISED = ("int8", "fp8")
# What the largest number of a range becomes: 8-bit integers without -128, and the largest finite number of E4M3 (OCP OFP8, table 1).
LARGEST = {"int8": 127.0, "fp8": 448.0}
# Half the distance from 1 to the next number above it: the largest relative error of one rounding (IEEE 754; bfloat16 has 8 bits).
# int8: half a step, of the largest number of the range.
ROUNDOFF = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8, "int8": 2.0**-8, "fp8": 2.0**-4}
# What fp16 holds before it becomes infinite, less a little for sums that grow on other images than those looked at.
OVERFLOW = {"fp16": 6.0e4}
# Two computations with the same roundings still differ: sums are taken in another order, a value on the edge between two neighbours
# rounds the other way, and later layers carry that on. In units of one rounding: of the largest logit, and of a decision margin.
LOGIT_ROUNDINGS = 8.0
MARGIN_ROUNDINGS = 4.0
# The largest of a million normal numbers, in standard deviations: what calibration makes the end of a range is at least so far out.
CREST = 4.9


def e4m3_step() -> float:
    """Root mean square of the step from one number of E4M3 to the next, of normal numbers whose largest is 1.

    Three bits of mantissa: between 2^e and 2^(e+1) numbers are 2^(e-3) apart (a half step is at most 2^-4 of the number), below 2^-6
    all are 2^-9 apart, in units of the scale that makes the largest number 448 (OCP OFP8, table 1).
    """
    deviation = LARGEST["fp8"] / CREST

    def below(value: float) -> float:
        return math.erf(value / deviation / math.sqrt(2))

    squares = below(2.0**-6) * 4.0**-9
    squares += sum((below(2.0 ** (e + 1)) - below(2.0**e)) * 4.0 ** (e - 3) for e in range(-6, 9))
    return math.sqrt(squares) / LARGEST["fp8"]


# On a grid a number on the edge between two steps goes a whole step the other way. Few do, and a sum takes up hundreds of numbers, so
# that it is the steps' root mean square which counts: int8's are alike, a share of the range; those of E4M3 are a share of the number.
UNIT = {**ROUNDOFF, "int8": 2 * ROUNDOFF["int8"], "fp8": e4m3_step()}
# Logits sum up many such numbers. Of numbers that differ by a noise that is small against the step, the share noise / step goes the other
# way, each by a step, which together is sqrt(noise * step): behind the same noise (that of the half type beside it) the root of the step's
# ratio to int8's, not the ratio.
LOGIT_UNIT = {**UNIT, "fp8": math.sqrt(UNIT["int8"] * UNIT["fp8"])}


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
    """How far logits of two computations in a type may lie apart, where the largest has the size `largest`."""
    return LOGIT_ROUNDINGS * LOGIT_UNIT[mode] * largest


def margin_tolerance(mode: str, scale: float = 1.0) -> float:
    """How close to its opposite a decision must be for two computations in a type to disagree on it; scale: size of a score."""
    return MARGIN_ROUNDINGS * UNIT[mode] * scale


def exponents(text: str) -> list[int]:
    """Exponents of two, one per letter: "m" is 0, "n" 1, "l" -1; how recipes store a factor per channel."""
    return [ord(letter) - ord("m") for letter in text]


def exponent_text(values: Iterable[int]) -> str:
    """The letters of exponents, those beyond -12 and 13 cut to that."""
    return "".join(chr(ord("m") + min(13, max(-12, int(value)))) for value in values)
