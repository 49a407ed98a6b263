"""vitprune benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitprune import console
from vitprune.cli._common import ForceOption, SetOption


def command(
    model: Annotated[str, typer.Argument(help="A timm model, a recipe whose model is meant, or a bundle.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new table, JSON.")] = ...,  # type: ignore[assignment]
    profile_tokens: Annotated[
        bool, typer.Option("--profile-tokens", help="Measure a block and a method's site by token count: a table for tune.")
    ] = False,
    batches: Annotated[list[int] | None, typer.Option("--batch", min=1, help="Images at once; repeatable; default: 1.")] = None,
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="Whose sites; repeatable; default: all that need no training.")
    ] = None,
    counts: Annotated[int, typer.Option(min=2, max=200, help="Token counts, evenly spread; knees are added.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of every graph.")] = 21,
    overrides: SetOption = None,
    force: ForceOption = False,
) -> None:
    """Measure what token counts cost on this machine's CPU; the weights do not matter."""
    from vitprune.tuning.tables import write_table

    with console.bar("benchmark") as bar:
        table = write_table(
            model, output, wanted=profile_tokens, batches=batches or [1], methods=methods or [], counts=counts, rounds=rounds,
            overrides=overrides, force=force, report=bar.update,
        )  # fmt: skip
    for batch, part in table.batches.items():
        rows = [
            [str(tokens), *(f"{curve.milliseconds[place]:.3f}" for curve in (part.block, part.rest, *part.sites.values()))]
            for place, tokens in enumerate(part.block.tokens)
        ]
        console.table(f"milliseconds, batch {batch}", ["tokens", "block", "rest", *part.sites], rows)
    console.info(f"next: vitprune tune MODEL --data DIR --budget-latency 0.8 --latency-table {console.plain(output)} -o FOLDER")
    console.document("benchmark", {"status": "ok", "exit_code": 0, "table": str(output), **table.model_dump(mode="json")})
