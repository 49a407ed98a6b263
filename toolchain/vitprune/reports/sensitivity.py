"""What each layer costs in int8 or FP8, as a bar chart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitprune.errors import TargetError

if TYPE_CHECKING:
    from vitprune.exporting.sensitivity import Sensitivity


def draw(found: Sensitivity, path: Path) -> None:
    """Write bars of the layers' errors, in the model's order; those that are left out in another colour.

    Raises:
        TargetError: VP201 matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TargetError(201, "plots need matplotlib", cause=str(error), next_step="pip install 'vitprune[plots]'") from error
    costs = sorted(found.costs, key=lambda one: [int(part) if part.isdigit() else 0 for part in one.layer.split(".")][1])
    figure = Figure(figsize=(6, 1 + 0.16 * len(costs)), layout="constrained")
    axes = figure.add_subplot()
    colours = ["#c8553d" if one.layer in found.exclude else "#3d6fa5" for one in costs]
    axes.barh([one.layer for one in costs], [100 * one.error for one in costs], color=colours)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=6)
    axes.set_xlabel(f"RMS error of the logits with this layer alone in {found.mode}, %")
    axes.set_title(f"{found.images} images; left out for the gate: {len(found.exclude)}", fontsize=9)
    figure.savefig(str(path))
