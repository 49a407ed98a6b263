"""Writes the heads of docs/methods/*.md from what the methods declare: name, summary, source, needs, keys with defaults.

python docs/heads.py                 rewrites the heads; the text below them is left as it is
python docs/heads.py --show NAME     prints one, for a page that is not there yet
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vitprune import methods
from vitprune.methods.base import Method

PAGES = Path(__file__).parent / "methods"
BEGIN, END = "<!-- begin: written by docs/heads.py -->", "<!-- end -->"
TRAINING = {"none": "none", "optional": "optional", "required": "required: without it results make no sense"}


def head(method: Method) -> str:
    """The head of a method's page, markers included."""
    name = (type(method).__doc__ or "").strip().splitlines()[0].rstrip(".")
    rows = [
        ("`" + (field.alias or key) + "`", _default(field))
        for key, field in method.params.model_fields.items()
        if key != "method"
    ]
    lines = [
        BEGIN, f"# `{method.name}`: {name}", "", f"{_sentence(method.summary)}", "", f"- Source: {method.paper}",
        f"- What differs between images: {method.varies}", f"- Needs a CLS token: {'yes' if method.needs_cls else 'no'}",
        f"- Training: {TRAINING[method.training_need]}", f"- Graphs of: {', '.join(method.families)}", "",
        "| key | default |", "|---|---|", *(f"| {key} | {default} |" for key, default in rows), END,
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:].rstrip(".") + "."


def _default(field: Any) -> str:
    return "required" if field.is_required() else f"`{json.dumps(field.get_default(call_default_factory=True), default=str)}`"


def with_head(page: str, method: Method) -> str:
    """A page with its head as the method declares it; a page without markers gets them in place of its title."""
    if BEGIN in page:
        before, _, rest = page.partition(BEGIN)
        _, found, below = rest.partition(END)
        if not found:
            raise ValueError(f"'{BEGIN}' without '{END}'")
        return before + head(method) + below.removeprefix("\n")
    title, _, below = page.partition("\n")
    return head(method) + "\n" + (below if title.startswith("# ") else page).lstrip("\n")


def pages() -> dict[Path, str]:
    """Every method's page as it should be."""
    return {
        path: with_head(path.read_text(encoding="utf-8") if path.exists() else "", methods.get(name))
        for name in methods.names()
        if methods.get(name).__class__.__module__.startswith("vitprune.")
        for path in [PAGES / f"{name}.md"]
    }


def main(arguments: list[str]) -> int:
    """The command."""
    if arguments[:1] == ["--show"]:
        print(head(methods.get(arguments[1])), end="")
        return 0
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
