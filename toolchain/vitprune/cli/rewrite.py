"""vitprune rewrite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vitprune import console
from vitprune.cli._common import (
    AutoExcludeOption,
    DataOption,
    ForceOption,
    InlineOption,
    OutputOption,
    RecipeOption,
    SetOption,
    excluding,
)

EXAMPLES = ("rewrite dense.onnx -r recipe.yaml -o out",)


def command(
    dense: Annotated[Path, typer.Argument(help="Dense ViT as ONNX, from any exporter.", show_default=False)],
    recipe: RecipeOption = ...,  # type: ignore[assignment]
    output: OutputOption = ...,  # type: ignore[assignment]
    data: DataOption = None,
    preprocessing: Annotated[
        str | None,
        typer.Option(help="What the model was trained on: a Hugging Face preprocessor_config.json, or a timm name."),
    ] = None,
    overrides: SetOption = None,
    output_name: Annotated[
        str | None, typer.Option("--output-name", help="Output of the graph that holds the logits, where it has several.")
    ] = None,
    auto_exclude: AutoExcludeOption = False,
    inline: InlineOption = False,
    force: ForceOption = False,
) -> None:
    """Apply a recipe to a dense ViT ONNX from another exporter (timm, Hugging Face; legacy or new)."""
    from vitprune.cli._render import exported
    from vitprune.graph.lowering.tensorrt import add_inlined
    from vitprune.pipelines import rewrite
    from vitprune.recipe import Recipe

    chosen = [] if output_name is None else [f"graph.output={json.dumps(output_name)}"]
    parsed = Recipe.load(recipe, [*(overrides or []), *chosen, *excluding(auto_exclude)])
    with console.step("rewrite") as step:
        bundle = rewrite(dense, parsed, output, data=data, preprocessing=preprocessing, force=force, report=step.update)
    described = bundle.manifest.preprocessing
    if not described["known"]:
        from vitprune.data.preprocessing import STATED

        absent = ", ".join(f"model.{key}" for key in STATED if key not in described)
        console.warn(
            f"preprocessing is not known: accuracy cannot be gated; state {absent} in the recipe, or all with --preprocessing"
        )
    else:
        console.info(f"preprocessing: mean {described['mean']}, std {described['std']}, as {described['origin']} says")
    if inline:
        add_inlined(bundle)
    exported(bundle, "rewrite")
