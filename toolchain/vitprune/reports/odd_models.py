"""What `export` says of models that are no plain ViTs, from the stored results of tests/reach/odd.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitprune.reports.models import read as read_stored

NAMED = ("VP310", "VP311")  # no plain ViT; blocks or attention of another kind


def read(path: Path | None = None) -> dict[str, Any]:
    """The stored results; errors as `models.read`."""
    return read_stored(path, "odd_models.json", "odd.py")


def failure(found: dict[str, Any]) -> str:
    """Why an answer is no proper refusal, "" where it is one: exit code 2, a code of its own, the reason and a next step."""
    wrong = [f"exit code {found['exit_code']}"] if found["exit_code"] != 2 else []
    wrong += [] if found["code"] in NAMED else [f"code {found['code'] or 'none'}"]
    wrong += ["a bundle was written"] if found["written"] else []
    return "; ".join(wrong + [f"no {part}" for part in ("cause", "next_step") if not found[part]])


def markdown(stored: dict[str, Any]) -> str:
    """Models with the same reason, its names left out, in a row."""
    models = stored["models"]
    proper = sum(not failure(one) for one in models.values())
    lines = [
        f"timm {stored['timm']}: {proper} of {len(models)} are refused as they should be.",
        "",
        "| model | code | why |",
        "|---|---|---|",
    ]
    return (
        "\n".join([*lines, *(f"| {name} | {one['code']} | {failure(one) or one['cause']} |" for name, one in models.items())])
        + "\n"
    )
