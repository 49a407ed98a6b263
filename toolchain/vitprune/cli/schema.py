"""vitprune schema."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from vitprune import console
from vitprune.errors import RecipeError
from vitprune.support.resources import schemas_folder
from vitprune.support.suggestions import did_you_mean

EXAMPLES = ("schema validate",)


def command(
    name: Annotated[str, typer.Argument(help="The command whose --json is meant.", show_default=False)],
) -> None:
    """Print the JSON schema (2020-12) of what a command writes with --json."""
    files = {path.stem: path for path in sorted(schemas_folder().glob("*.json"))}
    if name not in files:
        raise RecipeError(199, f"no command '{name}'", cause=did_you_mean(name, list(files)), next_step="vitprune --help")
    text = files[name].read_text(encoding="utf-8")
    if not console.settings.json:
        sys.stdout.write(text)
        sys.stdout.flush()
    console.result(f"schema of vitprune {name} --json")
    console.document("schema", {"status": "ok", "exit_code": 0, "name": name, "schema": json.loads(text)})
