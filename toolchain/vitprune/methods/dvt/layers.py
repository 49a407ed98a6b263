"""Names of layers in a cascade: `blocks.0.attn.qkv` is that layer in all members, `exit2.blocks.0.attn.qkv` in the second alone.

Every member is a model of its own with ranges of its own, so what belongs to one of them carries its exit's name in the recipe; what
works on a single graph is given the section of a single model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitprune.methods.dvt.keys import EXITS
from vitprune.recipe import PrecisionSection
from vitprune.support.precision import chosen, layer_names

BY_LAYER = ("ranges", "smoothing")


def prefix(number: int) -> str:
    """What stands before the layers of exit `number` (from 1)."""
    return f"exit{number}."


def all_names(depth: int) -> list[str]:
    """Every name that a pattern may fit, members by themselves last."""
    plain = layer_names(depth)
    return [*plain, *(f"{prefix(number)}{name}" for number in range(1, EXITS + 1) for name in plain)]


def of_member(precision: PrecisionSection, number: int, depth: int) -> PrecisionSection:
    """The section of one member, with its layers' plain names and patterns written out.

    Args:
        precision: of the cascade. number: the exit, from 1. depth: blocks of every member.
    """
    own, plain = prefix(number), layer_names(depth)
    changed: dict[str, Any] = {}
    for key in ("keep_fp32", "exclude"):
        patterns = getattr(precision, key)
        here = {name.removeprefix(own) for name in chosen([f"{own}{name}" for name in plain], patterns)}
        changed[key] = [name for name in plain if name in here | chosen(plain, patterns)]
    for key in BY_LAYER:
        changed[key] = {name.removeprefix(own): value for name, value in getattr(precision, key).items() if name.startswith(own)}
    return precision.model_copy(update=changed)


def together(precision: PrecisionSection, members: Sequence[PrecisionSection]) -> PrecisionSection:
    """The cascade's section with what was found for its members, coarse to fine."""
    found: dict[str, Any] = {key: {} for key in BY_LAYER}
    for number, member in enumerate(members, start=1):
        for key in BY_LAYER:
            found[key] |= {f"{prefix(number)}{name}": value for name, value in getattr(member, key).items()}
    return precision.model_copy(update=found)
