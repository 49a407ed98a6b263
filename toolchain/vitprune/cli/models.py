"""vitprune models."""

from __future__ import annotations

from typing import Annotated

import typer

from vitprune import console

EXAMPLES = (
    "models",
    "models eva02",
)


def command(
    name: Annotated[str, typer.Argument(help="part of a timm name or of a form; all where it is left out")] = "",
) -> None:
    """Which of timm's plain ViTs work with which methods, and on which evidence."""
    from vitprune.reports import models

    stored = models.read()
    found = [row for row in models.rows(stored) if name in row.form or any(name in one for one in row.names)]
    shares = models.shares(stored)
    methods = list(shares)
    table = [[str(len(row.names)), row.names[0], *(row.states[one] for one in methods)] for row in found]
    console.table("forms of plain ViTs, by their smallest model", ["names", "smallest", *methods], table)
    for row in found:
        built = f"; TensorRT-RTX built {row.built[0]} of {row.built[1]}" if row.built[1] else ""
        console.detail(f"  {row.names[0]}: {row.form}; graph against reference {row.worst:.1e}{built}")
        if row.why:
            console.info(f"  {row.names[0]}: {row.why}")
    for method, (both, some, every) in shares.items():
        console.info(f"  {method}: {both} names of {every} in dynamic and padded shapes, {some} in at least one of them")
    listed = [
        {
            "form": row.form,
            "names": row.names,
            "methods": row.states,
            "why": row.why,
            "parity": row.worst,
            "rtx_built": list(row.built),
        }
        for row in found
    ]
    every = sum(len(row.names) for row in found)
    console.result(f"{len(found)} forms of timm {stored['timm']}, {every} names")
    console.document("models", {"status": "ok", "exit_code": 0, "timm": stored["timm"], "forms": listed, "names": shares})
