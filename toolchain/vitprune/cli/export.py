"""vitprune export."""

from __future__ import annotations

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

EXAMPLES = (
    "export deit_small_patch16_224 -r topk_deit_small -o out",
    "export ./folder -r recipe.yaml -o out",
)


def command(
    model: Annotated[
        str | None,
        typer.Argument(
            help="timm model name, ./FOLDER that transformers saved, or hf:owner/name; default: the recipe's.", show_default=False
        ),
    ] = None,
    recipe: RecipeOption = ...,  # type: ignore[assignment]
    output: OutputOption = ...,  # type: ignore[assignment]
    pretrained: Annotated[bool, typer.Option("--pretrained/--no-pretrained", help="timm's weights, or random ones.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
    weights: Annotated[str | None, typer.Option(help="Checkpoint (.safetensors, .pth); wins over the recipe's.")] = None,
    data: DataOption = None,
    overrides: SetOption = None,
    auto_exclude: AutoExcludeOption = False,
    inline: InlineOption = False,
    force: ForceOption = False,
) -> None:
    """Export a timm Vision Transformer with token pruning to a bundle; parity with PyTorch is checked before it succeeds."""
    from vitprune.cli._render import exported
    from vitprune.graph.lowering.tensorrt import add_inlined
    from vitprune.pipelines import export
    from vitprune.recipe import Recipe

    parsed = Recipe.load(recipe, [*(overrides or []), *excluding(auto_exclude)])
    with console.step("export") as step:
        bundle = export(
            model, parsed, output, pretrained=pretrained, seed=seed, weights=weights, data=data, force=force, report=step.update
        )
    if inline:
        add_inlined(bundle)
    exported(bundle, "export")
