"""What the gates ask of a bundle in a half type: tolerances that follow from the type, and decisions that stay float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vitprune import methods
from vitprune.methods.base import Geometry
from vitprune.recipe import Gates, Recipe
from vitprune.validation.compare import Gate

if TYPE_CHECKING:
    from vitprune.bundle import Bundle


def gates_in_force(recipe: Recipe, logits: NDArray[Any], geometry: Geometry) -> Gates:
    """The recipe's gates with the tolerances of its precision.

    Args:
        recipe: what was exported. logits: [B,classes] of the reference. geometry: of the model.
    """
    scale = methods.get(recipe.prune.method).score_scale(geometry)
    return recipe.gates(float(np.abs(logits).max()), scale)


def decides_unseen(recipe: Recipe) -> bool:
    """Whether the method decides more than the kept lists show, and does so on values of a half type.

    Two computations may then differ in what no list shows (which patch another one joins), and later sites follow from that.
    """
    return recipe.precision.mode != "fp32" and methods.get(recipe.prune.method).hidden_decisions


def decision_types(bundle: Bundle) -> Gate:
    """The gate on types: how many nodes between layers and decisions compute in a half type; none may.

    Decisions that flip within a margin are legal, so that a score branch in fp16 could pass the other gates; it cannot pass this one.
    """
    from vitprune.graph.precision.audit import half_decisions
    from vitprune.support.onnx_file import read_model

    files = [name for name in bundle.manifest.files if name.endswith(".onnx")]
    found = [node for name in files for node in half_decisions(read_model(bundle.path / name))]
    return Gate("decision_types", 0, len(found), not found)
