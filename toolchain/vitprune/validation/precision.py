"""What the gates ask of a bundle in a half type: tolerances that follow from the type, and decisions that stay float32."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitprune import methods
from vitprune.methods.base import Geometry
from vitprune.recipe import Gates, PrecisionSection, Recipe
from vitprune.validation import intervals
from vitprune.validation.compare import Gate, drop_gate

if TYPE_CHECKING:
    from vitprune.bundle import Bundle


def gates_in_force(recipe: Recipe, logits: NDArray[Any], geometry: Geometry) -> Gates:
    """The recipe's gates with the tolerances of its precision.

    Args:
        recipe: what was exported. logits: [B,classes] of the reference. geometry: of the model.
    """
    scale = methods.get(recipe.prune.method).score_scale(recipe.prune, geometry)
    return recipe.gates(float(np.abs(logits).max()), scale)


def decides_unseen(recipe: Recipe) -> bool:
    """Whether the method decides more than the kept lists show, and does so on values of a half type.

    Two computations may then differ in what no list shows (which patch another one joins), and later sites follow from that.
    """
    return recipe.precision.mode != "fp32" and methods.get(recipe.prune.method).hidden_decisions


def against_float32(
    logits: NDArray[Any], float32: NDArray[Any], labels: NDArray[np.int64] | None, precision: PrecisionSection
) -> list[Gate]:
    """The gates on what the type costs: top-1 agreement with the same pruned model in fp32, and, with labels, points lost to it.

    Both are decided by their 95 % intervals, so that few images leave them undecided.

    Args:
        logits, float32: [n,classes] of what ran and of the fp32 reference. labels: int64 [n] or None.
    """
    one, other, found = float32.argmax(1), logits.argmax(1), []
    if precision.agreement is not None:
        found.append(agreement_gate(int((one == other).sum()), len(one), precision.agreement))
    if precision.drop is not None and labels is not None:
        found.append(replace(drop_gate(intervals.drop(one, other, labels), precision.drop), name="precision_drop"))
    return found


def agreement_gate(same: int, count: int, limit: float) -> Gate:
    """Holds when the interval of same / count lies at or above the limit, fails when it lies below."""
    low, high = intervals.wilson(same, count)
    undecided = low < limit <= high
    return Gate(
        "precision_agreement", limit, same / count if count else 0.0, low >= limit, interval=(low, high), undecided=undecided,
        more=_images_for(same, count, limit) if undecided else None,
    )  # fmt: skip


def _images_for(same: int, count: int, limit: float) -> int | None:
    """Further images that would decide, if they agreed as often as these do; None where no number would."""
    total = max(count, 1)
    while total <= intervals.MOST:
        total *= 2
        low, high = intervals.wilson(round(same / max(count, 1) * total), total)
        if low >= limit or high < limit:
            return total - count
    return None


def decision_types(bundle: Bundle) -> Gate:
    """The gate on types: how many nodes between layers and decisions compute in a half type; none may.

    Decisions that flip within a margin are legal, so that a score branch in fp16 could pass the other gates; it cannot pass this one.
    """
    from vitprune.graph.precision.audit import half_decisions
    from vitprune.support.onnx_file import read_model

    files = [name for name in bundle.manifest.files if name.endswith(".onnx")]
    found = [node for name in files for node in half_decisions(read_model(bundle.path / name))]
    return Gate("decision_types", 0, len(found), not found)
