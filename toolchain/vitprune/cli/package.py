"""vitprune package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitprune import console
from vitprune.cli._common import BundleArgument, ForceOption

EXAMPLES = ("package out --triton models",)


def command(
    bundle: BundleArgument,
    triton: Annotated[Path, typer.Option("--triton", help="Folder of a Triton model repository, new or with other models.")],
    force: ForceOption = False,
) -> None:
    """Write a bundle in the form of a server: a Triton model repository, its configuration checked against the model."""
    from vitprune.bundle import open_bundle
    from vitprune.device.triton import package_triton

    opened = open_bundle(bundle)
    with console.step("package") as step:
        step.update("writing and checking the repository")
        names = package_triton(opened, triton, force)
    console.result(
        f"Triton repository [bold]{console.plain(triton)}[/bold]: {console.plain(', '.join(names))}; configuration checked"
    )
    console.document(
        "package", {"status": "ok", "exit_code": 0, "bundle": str(opened.path), "repository": str(triton), "models": names}
    )
