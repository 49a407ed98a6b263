"""vitprune init."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vitprune import console

EXAMPLES = (
    "init deit_small_patch16_224 -o recipe.yaml",
    "init ./folder --method topk",
)


def command(
    model: Annotated[
        str, typer.Argument(help="timm model name, ./FOLDER that transformers saved, or hf:owner/name.", show_default=False)
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; default: stdout.")] = None,
    method: Annotated[str, typer.Option("--method", "-m", help="As vitprune methods lists it.")] = "ats",
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Write a commented recipe for a model, with a method's defaults; nothing is asked."""
    from vitprune.bundle import write_atomic
    from vitprune.bundle_parts.output import unwritable
    from vitprune.errors import RecipeError
    from vitprune.exporting.starting import starting_recipe

    if output is not None and output.exists() and not force:
        raise RecipeError(106, f"'{output}' exists", cause="it is not overwritten", next_step="choose another -o, or --force")
    with console.step("init") as step:
        step.update("reading the model's sizes")
        text = starting_recipe(model, method)
    if output is None:
        if not console.settings.json:
            sys.stdout.write(text)
    else:
        try:
            write_atomic(output, text.encode())
        except OSError as error:
            raise unwritable(output, error) from error
        console.result(f"recipe [bold]{console.plain(output)}[/bold] for {console.plain(model)}: {method} with its defaults")
    console.document(
        "init",
        {
            "status": "ok",
            "exit_code": 0,
            "model": model,
            "method": method,
            "recipe": text,
            "written": None if output is None else str(output),
        },
    )
