"""vitprune demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitprune import console

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
    console.table("dense against pruned", ["", "dense", "pruned"], result.facts)
    for note in result.notes:
        console.info(note)
    console.info(f"report: {console.plain(result.report)}")
    console.document(
        "demo", {**result.verdict.document(), "table": result.facts, "notes": result.notes, "report": str(result.report)}
    )
    if not result.verdict.passed:
        raise typer.Exit(1)
