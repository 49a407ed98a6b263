"""Options shared by commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeOption = Annotated[str, typer.Option("--recipe", "-r", help="Recipe file, or the name of a shipped recipe.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key: key.path=value; repeatable.")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Folder of the new bundle.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
InlineOption = Annotated[
    bool, typer.Option("--inline", help="Also write model.inline.onnx: plain ONNX without the custom domain, for other runtimes.")
]
AutoExcludeOption = Annotated[
    bool,
    typer.Option("--auto-exclude", help="In int8 and fp8: leave out the layers that cost most until the agreement gate holds."),
]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Images: class folders, a saved Hugging Face data set, IDX files, or an .npz.")
]
BundleArgument = Annotated[Path, typer.Argument(help="A bundle made by export or rewrite.", show_default=False)]
BatchOption = Annotated[str | None, typer.Option("--batch", help="min:opt:max or one number; default: the recipe's.")]
# Which device is meant: of check and build-engine.
JetpackOption = Annotated[
    str | None, typer.Option("--jetpack", help="JetPack version of the device; default: the oldest supported.")
]
ModuleOption = Annotated[str | None, typer.Option("--module", help="Module or card, for example agx-64.")]
TensorrtOption = Annotated[str | None, typer.Option("--tensorrt", help="TensorRT version of the device, instead of a JetPack's.")]
SmOption = Annotated[str, typer.Option("--sm", help="Compute capability of the device's GPU, for example 87 or 8.7.")]


def excluding(asked: bool) -> list[str]:
    """What --auto-exclude sets in the recipe."""
    return ["precision.auto_exclude=true"] if asked else []
