"""vitprune demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitprune import console

if TYPE_CHECKING:
    from vitprune.demo import DemoResult

EXAMPLES = ("demo",)


def command(
    method: Annotated[str, typer.Option(help="A shipped recipe under fashion_mnist/.")] = "ats",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything the demo makes.")] = Path("demo-output"),
) -> None:
    """Run the whole pipeline on the shipped Fashion-MNIST model: export, rewrite, engines, validate, report."""
    from vitprune import demo
    from vitprune.cli._render import verdict

    result = demo.run(method, output, console.step)
    verdict(result.verdict)
    for note in result.notes:
        console.info(console.plain(note))
    console.info(f"report: {console.plain(result.report)}")
    console.table("dense against pruned", ["", "dense", "pruned"], result.facts)
    console.result(_summary(result))
    speed = result.speed
    figures = speed and {
        "ratio": speed["ratio"],
        "ratio_interval": speed["ratio_interval"],
        "target": "onnxruntime-cpu",
        "batch": speed["batch"],
    }
    found = {"speed": figures, "table": result.facts, "notes": result.notes, "report": str(result.report)}
    console.document("demo", {**result.verdict.document(), **found})
    if not result.verdict.passed:
        raise typer.Exit(1)


def _summary(result: DemoResult) -> str:
    """Speed-up, accuracy and MACs in one line."""
    verdict, accuracy = result.verdict, result.verdict.comparison.accuracy or {}
    parts = []
    if (speed := result.speed) is not None:
        low, high = speed["ratio_interval"]
        parts.append(f"{1 / speed['ratio']:.2f}x as fast as dense ({1 / high:.2f} to {1 / low:.2f})")
    parts += [f"top-1 {accuracy['pruned']:.2f} % of {accuracy['dense']:.2f} %", f"{verdict.macs['ratio']:.2f}x the MACs"]
    return f"[bold]{verdict.status.upper()}[/bold] {console.plain(verdict.bundle)}: {', '.join(parts)}"
