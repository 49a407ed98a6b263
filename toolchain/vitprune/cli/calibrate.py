"""vitprune calibrate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitprune import console
from vitprune.cli._common import ForceOption, SetOption

EXAMPLES = (
    "calibrate tome_threshold_deit_small --data DIR --budget-macs 0.65 -o new.yaml",
    "calibrate new.yaml --data DIR --capacities 0.99 -o padded.yaml",
)


def command(
    source: Annotated[str, typer.Argument(help="A recipe (file or shipped name) or a bundle.", show_default=False)],
    data: Annotated[
        Path, typer.Option("--data", help="Images: class folders, a saved Hugging Face data set, IDX files, or an .npz.")
    ] = ...,  # type: ignore[assignment]
    output: Annotated[Path, typer.Option("--output", "-o", help="The new recipe.")] = ...,  # type: ignore[assignment]
    budget_macs: Annotated[
        float | None, typer.Option(help="Mean MACs as a share of the dense model's, for example 0.65.")
    ] = None,
    mean_tokens: Annotated[float | None, typer.Option(help="Mean number of patches that a prune site leaves.")] = None,
    capacities: Annotated[
        float | None,
        typer.Option(min=0.5, max=1.0, help="Also padded capacities: quantile of the kept counts, for example 0.99."),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="How tome spreads its merges: constant, falling, or best = what agrees best with the dense model."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Largest number of images.")] = 512,
    weights: Annotated[str | None, typer.Option(help="Checkpoint; wins over the recipe's.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained/--no-pretrained", help="timm's weights, or random ones.")] = True,
    overrides: SetOption = None,
    force: ForceOption = False,
) -> None:
    """Set a method to a budget without training, on calibration images; writes a new recipe."""
    from vitprune.pipelines.calibrate import run

    with console.step("calibrate") as step:
        done = run(
            source, data, output, macs=budget_macs, tokens=mean_tokens, quantile=capacities, samples=samples, weights=weights,
            pretrained=pretrained, overrides=overrides, force=force, report=step.update, schedule=schedule,
        )  # fmt: skip
    console.table(f"{done['method']} on {done['images']} images", ["", ""], [[name, str(value)] for name, value in done.items()])
    console.info(f"next: vitprune export -r {console.plain(output)} -o BUNDLE")
    console.result(f"recipe [bold]{console.plain(output)}[/bold]: {done['method']}, set on {done['images']} images")
    console.document("calibrate", {"status": "ok", "exit_code": 0, "recipe": str(output), **done})
