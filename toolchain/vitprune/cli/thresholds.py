"""vitprune thresholds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitprune import console
from vitprune.cli._common import BundleArgument

EXAMPLES = (
    "thresholds out --data calibration.npz --accuracy 76.5",
    "thresholds out --data calibration.npz --budget 2.5",
)


def command(
    bundle: BundleArgument,
    data: Annotated[
        Path,
        typer.Option("--data", help="Calibration images: class folders, a saved Hugging Face data set, IDX files, or an .npz."),
    ],
    accuracy: Annotated[float | None, typer.Option(help="Top-1 in percent to reach at least cost.")] = None,
    budget: Annotated[
        float | None, typer.Option(help="Mean cost per image for the best accuracy: GMACs, or exit_cost's unit.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Largest number of images.")] = 5000,
    backend: Annotated[str, typer.Option(help="What to run the bundle on.")] = "onnxruntime",
) -> None:
    """Solve the exit thresholds of a cascade (DVT) on calibration images, for an accuracy or for a budget."""
    from dataclasses import asdict

    from rich.markup import escape

    from vitprune.bundle import open_bundle
    from vitprune.methods.dvt.calibration import calibrate
    from vitprune.methods.dvt.thresholds import check_goal, solve

    check_goal(accuracy, budget)
    opened = open_bundle(bundle)
    with console.step("thresholds") as step:
        found = calibrate(opened, data, samples, backend, step.update)
    best = solve(found.certainty, found.correct, found.costs, accuracy=accuracy, budget=budget)
    written = ", ".join("null" if limit is None else f"{limit:.9g}" for limit in best.thresholds)
    rows = [
        [f"exit {number}", "rest" if number == len(found.costs) else limit, f"{100 * share:.1f} %", f"{cost:.4g}"]
        for number, (limit, share, cost) in enumerate(
            zip([*written.split(", "), ""], best.fractions, found.costs, strict=True), start=1
        )
    ]
    console.table(f"exits, {found.certainty.shape[1]} images", ["exit", "threshold", "images", found.unit], rows)
    console.info(escape(f"next: export again with --set 'prune.thresholds=[{written}]'"))
    console.result(f"accuracy {best.accuracy:.2f} % (by {found.judged_by}), mean cost {best.mean_cost:.4g} {found.unit}")
    console.document(
        "thresholds", {"status": "ok", "exit_code": 0, **asdict(best), "unit": found.unit, "judged_by": found.judged_by}
    )
