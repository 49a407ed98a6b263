"""vitprune tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitprune import console
from vitprune.cli._common import SetOption

EXAMPLES = ("tune deit_small_patch16_224 --data DIR --budget-macs 0.5 -o search",)


def command(
    model: Annotated[str, typer.Argument(help="A timm model, a recipe whose model is meant, or a bundle.", show_default=False)],
    data: Annotated[
        Path, typer.Option("--data", help="Images: class folders, a saved Hugging Face data set, IDX files, or an .npz.")
    ] = ...,  # type: ignore[assignment]
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the search; one that is there goes on.")] = ...,  # type: ignore[assignment]
    budget_macs: Annotated[float | None, typer.Option(help="Mean MACs as a share of the dense model's, for example 0.5.")] = None,
    budget_latency: Annotated[
        float | None, typer.Option(help="Latency as a share of the dense model's on this CPU, for example 0.8; measured.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Whose latency is meant: onnxruntime-cpu, or the table's.")] = None,
    latency_table: Annotated[
        Path | None, typer.Option(help="Latencies of a device (benchmark --profile-tokens) instead of runs on this CPU.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at once, of --budget-latency.")] = 1,
    trials: Annotated[
        int, typer.Option(min=1, max=100000, help="Settings to try, of all processes on one study together.")
    ] = 100,
    samples: Annotated[int, typer.Option(min=1, help="Largest number of images; labels are not needed.")] = 1024,
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="A method to search; repeatable; default: all that need no training.")
    ] = None,
    recipes: Annotated[
        list[str] | None,
        typer.Option("--recipe", "-r", help="A recipe to try as it is and calibrated, trained ones too; repeatable."),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="Optuna storage URL that several processes or machines share; default: SQLite in the folder."),
    ] = None,
    study: Annotated[str, typer.Option(help="Name of the study in a shared storage.")] = "vitprune",
    seed: Annotated[int, typer.Option(min=0, help="Of the search.")] = 0,
    weights: Annotated[str | None, typer.Option(help="Checkpoint; wins over the recipe's.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained/--no-pretrained", help="timm's weights, or random ones.")] = True,
    overrides: SetOption = None,
) -> None:
    """Search methods and settings that stay nearest to the dense model within a budget; writes the best recipe and the front."""
    from vitprune.reports.tuning import write_report
    from vitprune.tuning.budget import budget_of
    from vitprune.tuning.tune import Options, tune

    options = Options(
        model, data, output, budget_of(budget_macs, budget_latency), trials, samples, methods or (), recipes or (), seed, storage, study,
        weights, pretrained, overrides or [], target, batch, latency_table,
    )  # fmt: skip
    with console.bar("tune") as bar:
        found = tune(options, bar.update)
    page = write_report(output, found)
    rows = [
        [f"{one.spent:.3f}", one.candidate, one.kind, "–" if one.agreement is None else f"{100 * one.agreement:.2f} %", f"{one.error:.5f}"]
        for one in found.front
    ]  # fmt: skip
    console.table(f"front, share of the {options.budget.what}", ["share", "method", "found", "agree", "error"], rows)
    console.info(console.plain(found.why))
    if found.chosen is not None:
        console.info(f"report: {console.plain(page)}")
        console.info(f"next: vitprune export -r {console.plain(output / 'recipe.yaml')} -o BUNDLE")
    best = found.chosen
    console.result(
        f"search [bold]{console.plain(output)}[/bold]: "
        + (
            "nothing keeps the budget"
            if best is None
            else f"{best.candidate} is nearest to the dense model at {best.spent:.3f} of its {options.budget.what}"
        )
    )
    status = "ok" if found.chosen is not None else "failed"
    console.document("tune", {"status": status, "exit_code": int(found.chosen is None), "folder": str(output), **found.document})
    if found.chosen is None:
        raise typer.Exit(1)
