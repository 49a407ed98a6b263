"""What the threshold solver needs, measured by running a bundle on images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune.bundle import Bundle
from vitprune.data import images as image_data
from vitprune.errors import RecipeError
from vitprune.methods.base import Geometry, keys_of
from vitprune.methods.cost import dense_blocks, model_macs
from vitprune.methods.dvt.cost import exit_costs
from vitprune.methods.dvt.host import confidence, open_session
from vitprune.methods.dvt.keys import EXITS, Params
from vitprune.methods.pipeline import Calibration as Found
from vitprune.methods.pipeline import Goal
from vitprune.recipe import Recipe

BATCH = 8


@dataclass(frozen=True)
class Calibration:
    """certainty [2,n], correct bool [3,n], cumulative costs of the exits, their unit, and what "correct" was judged by."""

    certainty: NDArray[np.float64]
    correct: NDArray[np.bool_]
    costs: list[float]
    unit: str
    judged_by: str


def calibrate(
    bundle: Bundle, data: Path, samples: int, backend: str = "onnxruntime", report: Callable[[str], None] = lambda text: None
) -> Calibration:
    """Run all exits of a cascade bundle on images.

    Without labels an exit counts as right where it agrees with the last exit.

    Raises:
        RecipeError: VP156 the bundle is not a cascade. LoadError: VP62x data, VP61x backend.
    """
    params = bundle.recipe.prune
    if not isinstance(params, Params):
        raise RecipeError(
            156,
            f"'{bundle.path}' has no exits",
            cause=f"thresholds belong to a cascade; this bundle uses {params.method}",
            next_step="vitprune export MODEL -r dvt_deit_small -o BUNDLE",
        )
    inputs = image_data.for_bundle(bundle, data, samples, ("train",))
    session = open_session(bundle, backend)
    pieces = []
    for start in range(0, len(inputs), BATCH):
        pieces.append(session.all_exits(inputs.pixels[start : start + BATCH]))
        report(f"running all exits {min(start + BATCH, len(inputs))}/{len(inputs)}")
    logits = [np.concatenate([piece[number] for piece in pieces]) for number in range(EXITS)]
    answers = np.stack([value.argmax(1) for value in logits])
    correct = answers == (answers[-1] if inputs.labels is None else inputs.labels)
    geometry = Geometry(**bundle.manifest.model["geometry"])
    macs = exit_costs(params, geometry, bundle.manifest.preprocessing["input_size"])
    return Calibration(
        certainty=np.stack([confidence(value) for value in logits[:-1]]),
        correct=correct,
        costs=params.exit_cost or [cost / 1e9 for cost in macs],
        unit="the recipe's unit" if params.exit_cost else "GMACs",
        judged_by="labels" if inputs.labels is not None else "agreement with the last exit",
    )


def thresholds_for(module: Any, recipe: Recipe, inputs: image_data.Images, preprocessing: dict[str, Any], goal: Goal) -> Found:
    """Exit thresholds of a cascade within a budget of MACs; see `Pipeline.calibrate`."""
    from vitprune.methods.dvt.exporting import geometry_of
    from vitprune.methods.dvt.host import all_exits, torch_members
    from vitprune.methods.dvt.thresholds import solve

    if goal.macs is None:
        raise RecipeError(170, "a cascade is calibrated for MACs", cause="it drops no tokens", next_step="--budget-macs 0.65")
    params = keys_of(recipe.prune, Params)
    geometry = geometry_of(module.shape, params.grids[-1])
    dense = model_macs(geometry, dense_blocks(geometry))
    members = torch_members(module)
    pieces = [all_exits(members, inputs.pixels[start : start + 64]) for start in range(0, len(inputs), 64)]
    logits = [np.concatenate([piece[number] for piece in pieces]) for number in range(len(members))]
    answers = np.stack([value.argmax(1) for value in logits])
    correct = answers == (answers[-1] if inputs.labels is None else inputs.labels)
    costs = [cost / dense for cost in exit_costs(params, geometry, preprocessing["input_size"])]
    best = solve(np.stack([confidence(value) for value in logits[:-1]]), correct, costs, budget=goal.macs)
    facts = {"macs_share": round(best.mean_cost, 5), "exit_shares": best.fractions, "accuracy_on_these": round(best.accuracy, 3)}
    return Found({"thresholds": best.thresholds}, facts)
