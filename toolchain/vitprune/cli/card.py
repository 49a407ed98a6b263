"""vitprune card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitprune import console
from vitprune.cli._common import BundleArgument

EXAMPLES = (
    "card out",
    "card out -o README.md",
)


def command(
    bundle: BundleArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: README.md in the bundle.")
    ] = None,
) -> None:
    """Write a model card from what a bundle's files and reports say; what was not measured is not claimed."""
    from vitprune.bundle import open_bundle, write_atomic
    from vitprune.bundle_parts.output import unwritable
    from vitprune.reports.card import card

    opened = open_bundle(bundle)
    path = output or opened.path / "README.md"
    text = card(opened)
    try:
        write_atomic(path, text.encode())
    except OSError as error:
        raise unwritable(path, error) from error
    console.result(f"model card [bold]{console.plain(path)}[/bold] of {console.plain(opened.manifest.name)}")
    console.document("card", {"status": "ok", "exit_code": 0, "bundle": str(opened.path), "written": str(path)})
