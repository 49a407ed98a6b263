"""The reference once more, with the decisions of the graph: where a decision flipped within its margin, logits can be compared all the same.

In a half type flips within the margin are common, and an image with one of them is computed with other tokens from there on. Following
the graph's own kept lists, the reference computes with the same tokens again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCH = 8


def follow(
    oracle: Any, pixels: NDArray[np.float32], kept: Sequence[NDArray[np.int64]], reference: dict[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Logits of the images whose kept lists differ from the reference's, computed with those lists.

    Args:
        oracle: a `PrunedViT`. pixels: [n,C,H,W]. kept: per site int64 [n,K] of what ran, padded with -1. reference: kept_<block> arrays.

    Returns:
        {"logits_followed": float32 [n,classes], NaN where nothing differs}; {} when no image differs or the method cannot follow.
    """
    import torch

    if not oracle.method.follows or not kept:
        return {}
    blocks = [site.block for site in oracle.sites]
    differing = np.zeros(len(pixels), bool)
    for block, lists in zip(blocks, kept, strict=True):
        ours, theirs = (_members(rows, oracle.geometry.patches) for rows in (lists, reference[f"kept_{block}"]))
        differing |= (ours != theirs).any(axis=1)
    rows = np.flatnonzero(differing)
    if not len(rows):
        return {}
    found = np.full_like(reference["logits"], np.nan)
    with torch.inference_mode():
        for start in range(0, len(rows), BATCH):
            here = rows[start : start + BATCH]
            decisions = [torch.from_numpy(np.ascontiguousarray(lists[here])) for lists in kept]
            found[here] = oracle(torch.from_numpy(pixels[here]), decisions).numpy()
    return {"logits_followed": found}


def _members(lists: NDArray[np.int64], patches: int) -> NDArray[np.bool_]:
    """Bool [n,P], true for listed patches."""
    found = np.zeros((len(lists), patches + 1), bool)
    np.put_along_axis(found, np.where(lists < 0, patches, lists), True, axis=1)
    return found[:, :patches]
