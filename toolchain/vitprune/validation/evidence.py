"""What stands beside the gates: numerics with the decisions locked, the images that differ most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vitprune.backends import Result

WORST = 5


def differing(result: Result, reference: dict[str, NDArray[Any]], blocks: list[int]) -> NDArray[np.int64]:
    """The first block whose kept set differs, per image int64 [n]; -1 where all agree."""
    first = np.full(len(result.logits), -1, np.int64)
    for block, kept in zip(blocks, result.kept, strict=True):
        for image, (ours, theirs) in enumerate(zip(kept, reference[f"kept_{block}"], strict=True)):
            if first[image] < 0 and set(ours[ours >= 0].tolist()) != set(theirs[theirs >= 0].tolist()):
                first[image] = block
    return first


def locked(result: Result, reference: dict[str, NDArray[Any]], first: NDArray[np.int64]) -> dict[str, Any]:
    """Numerics judged apart from decisions.

    Args:
        result: what ran. reference: logits, and logits_followed where the reference was run again with the graph's decisions. first: of
            `differing`.

    Returns:
        images: compared with equal decisions; of these `followed`, whose decisions the reference took from the graph; unlocked: images
        whose decisions differ and could not be followed; logits_max_abs over the former; free_max_abs over all, decisions as they fell.
    """
    own = np.abs(result.logits - reference["logits"]).max(axis=1)
    followed = reference.get("logits_followed")
    again = np.zeros(len(own), bool) if followed is None else (first >= 0) & ~np.isnan(followed).any(axis=1)
    same = own.copy()
    if followed is not None:
        same[again] = np.abs(result.logits - followed).max(axis=1)[again]
    comparable = (first < 0) | again
    return {
        "images": int(comparable.sum()), "followed": int(again.sum()), "unlocked": int((~comparable).sum()),
        "logits_max_abs": float(same[comparable].max()) if comparable.any() else None, "free_max_abs": float(own.max()),
    }  # fmt: skip


def worst(result: Result, reference: dict[str, NDArray[Any]], first: NDArray[np.int64]) -> list[dict[str, Any]]:
    """The images whose logits differ most from the reference's: number, difference, predictions, first block that decided otherwise."""
    difference = np.abs(result.logits - reference["logits"]).max(axis=1)
    difference = np.where(np.isfinite(difference), difference, np.inf)
    found = []
    for image in np.argsort(-difference, kind="stable")[:WORST]:
        entry: dict[str, Any] = {
            "image": int(image), "logits_max_abs": float(difference[image]), "predicted": int(result.logits[image].argmax()),
            "reference": int(reference["logits"][image].argmax()), "differs_from_block": int(first[image]) if first[image] >= 0 else None,
        }  # fmt: skip
        if "labels" in reference:
            entry["label"] = int(reference["labels"][image])
        found.append(entry)
    return found
