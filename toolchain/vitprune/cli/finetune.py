"""vitprune finetune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitprune import console
from vitprune.cli._common import ForceOption, RecipeOption, SetOption
from vitprune.errors import RecipeError

EXAMPLES = ("finetune deit_small_patch16_224 -r asvit_deit_small --data DIR -o run",)


def command(
    model: Annotated[str | None, typer.Argument(help="timm model name; default: the recipe's.", show_default=False)] = None,
    recipe: RecipeOption = ...,  # type: ignore[assignment]
    data: Annotated[
        Path, typer.Option("--data", help="Class folders (train/, val/), a saved Hugging Face data set, IDX files, or an .npz.")
    ] = ...,  # type: ignore[assignment]
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for checkpoint, logs, weights and recipe.")] = ...,  # type: ignore[assignment]
    pretrained: Annotated[bool, typer.Option("--pretrained/--no-pretrained", help="Start from timm's weights.")] = True,
    weights: Annotated[str | None, typer.Option(help="Checkpoint to start from; wins over the recipe's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read images.")] = 0,
    bad_images: Annotated[str, typer.Option(help="What to do with unreadable images: fatal or skip.")] = "fatal",
    checkpoint_steps: Annotated[int, typer.Option(min=0, help="Also write a checkpoint every so many steps.")] = 0,
    log_steps: Annotated[int, typer.Option(min=1, help="Steps per row of steps.csv.")] = 50,
    overrides: SetOption = None,
    force: ForceOption = False,
) -> None:
    """Train a model with its pruning method; several GPUs or machines: accelerate launch -m vitprune finetune ..."""
    from vitprune.recipe import Recipe
    from vitprune.training.finetuning import RECIPE, finetune, require_accelerate
    from vitprune.vit.loading import require_torch

    if bad_images not in ("fatal", "skip"):
        raise RecipeError(199, f"--bad-images '{bad_images}'", cause="it is fatal or skip", next_step="vitprune finetune --help")
    parsed = Recipe.load(recipe, overrides)
    require_torch("finetune")
    require_accelerate()
    from vitprune.training.engine import Setting

    setting = Setting(workers, checkpoint_steps, log_steps, bad_images)
    with console.bar("finetune") as bar:
        done = finetune(
            model, parsed, data, output, pretrained=pretrained, weights=weights, resume=resume, force=force, setting=setting,
            warn=console.warn, progress=bar.update,
        )  # fmt: skip
    if not done.main:
        return
    facts = done.facts
    if facts["unreadable"]:
        console.warn(f"{len(facts['unreadable'])} unreadable images were skipped; they are listed in train.json")
    last = facts["history"][-1] if facts["history"] else {}
    top1 = f", top-1 {last['val_top1']:.2f} % of {facts['validation_images']} images" if "val_top1" in last else ""
    console.info(f"next: vitprune export -r {console.plain(output / RECIPE)} -o BUNDLE")
    console.result(f"trained [bold]{console.plain(output)}[/bold]: {facts['steps']} steps, {facts['seconds']:.0f} s{top1}")
    console.document("finetune", {"status": "ok", "exit_code": 0, "folder": str(output), "recipe": str(output / RECIPE), **facts})
