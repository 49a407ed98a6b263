"""How far decisions of the reference lie from their opposites, as the flip margin counts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def sizes_of(block: int, parts: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """{"size_<block>": float32 [n,P]} of a site whose margins have sizes of their own (`vitprune.vit.tokens`); {} of another."""
    size = np.concatenate(parts).astype(np.float32)
    return {} if (size == 1).all() else {f"size_{block}": size}


def distances(reference: dict[str, NDArray[Any]], block: int) -> NDArray[Any] | None:
    """[n,P] of every patch: its margin, over its size where there is one; None where margins are not known.

    Args:
        reference: arrays of a reference, with margin_<block> and, in another type than fp32, size_<block>.
    """
    margin, size = reference.get(f"margin_{block}"), reference.get(f"size_{block}")
    return margin if margin is None or size is None else margin / size
